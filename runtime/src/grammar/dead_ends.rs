//! Finds grammars with a part that no text completes: a rule such as `a: "x" a`, or a terminal such as `/a/ & /b/`. An answer that enters
//! such a part can never end, or has no next token.

use std::collections::HashSet;

use llguidance::api::ParserLimits;
use llguidance::earley::CGrammar;

/// True if a part of the grammar matches no finite text.
pub(super) fn has_dead_end(grammar: &CGrammar, mut limits: ParserLimits) -> bool {
    let start = grammar.start();
    let (mut symbols, mut seen, mut next) = (vec![start], HashSet::from([start.as_index()]), 0);
    while let Some(symbol) = symbols.get(next).copied() {
        next += 1;
        for rule in grammar.rules_of(symbol) {
            let parts = grammar.rule_rhs(*rule).0.iter();
            symbols.extend(parts.filter(|part| seen.insert(part.as_index())));
        }
    }
    // The library has found which terminals match nothing when it built the grammar, but does not say so.
    let Ok(mut lexer) = grammar.lexer_spec().to_regex_vec(&mut limits) else { return false };
    let begin = lexer.initial_state(&grammar.lexer_spec().all_lexemes());
    let terminals = &lexer.state_desc(begin).possible;
    let mut ending: HashSet<usize> = HashSet::new();
    loop {
        let before = ending.len();
        // Rules mostly come after the rules that use them.
        for symbol in symbols.iter().rev() {
            let data = grammar.sym_data(*symbol);
            let is_ending =
                |rule| grammar.rule_rhs(rule).0.iter().all(|part| ending.contains(&part.as_index()));
            let may_be_empty =
                data.is_nullable || !data.cond_nullable.is_empty() || data.gen_grammar.is_some();
            let is_text = data.is_terminal && data.lexeme.is_none_or(|lexeme| terminals.contains(lexeme));
            if may_be_empty || is_text || data.rules.iter().copied().any(is_ending) {
                ending.insert(symbol.as_index());
            }
        }
        if ending.len() == symbols.len() || ending.len() == before {
            return ending.len() < symbols.len();
        }
    }
}
