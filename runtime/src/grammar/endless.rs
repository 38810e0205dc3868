//! Finds grammars with a rule that no text completes. An answer that enters such a rule can never end.

use std::collections::HashSet;

use llguidance::earley::CGrammar;

/// True if the grammar has a rule without a finite text, such as `a: "x" a`. For terminals, the library checks this itself.
pub(super) fn is_endless(grammar: &CGrammar) -> bool {
    let start = grammar.start();
    let (mut symbols, mut seen, mut next) = (vec![start], HashSet::from([start.as_index()]), 0);
    while let Some(symbol) = symbols.get(next).copied() {
        next += 1;
        for rule in grammar.rules_of(symbol) {
            let parts = grammar.rule_rhs(*rule).0.iter();
            symbols.extend(parts.filter(|part| seen.insert(part.as_index())));
        }
    }
    let mut ending: HashSet<usize> = HashSet::new();
    loop {
        let before = ending.len();
        // Rules mostly come after the rules that use them.
        for symbol in symbols.iter().rev() {
            let data = grammar.sym_data(*symbol);
            let is_ending =
                |rule| grammar.rule_rhs(rule).0.iter().all(|part| ending.contains(&part.as_index()));
            let may_be_empty = data.is_nullable || !data.cond_nullable.is_empty();
            let is_known = data.is_terminal || data.gen_grammar.is_some();
            if is_known || may_be_empty || data.rules.iter().copied().any(is_ending) {
                ending.insert(symbol.as_index());
            }
        }
        if ending.len() == symbols.len() || ending.len() == before {
            return ending.len() < symbols.len();
        }
    }
}
