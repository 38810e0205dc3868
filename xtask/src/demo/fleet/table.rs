//! What each process of the fleet did in a burst, as a table.

use std::fmt;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Answers that it decoded.
    pub(super) answers: usize,
    /// Prompts that it prefilled for answers of other processes.
    pub(super) for_others: usize,
    /// Prompt tokens that it computed; `None` for the killed process.
    pub(super) tokens: Option<u64>,
}

/// The processes in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table(pub(super) Vec<Row>);

impl Table {
    /// Prompts that were prefilled in one process and decoded in another.
    pub(super) fn handed_over(&self) -> usize {
        self.0.iter().map(|row| row.for_others).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<12}{:>8}   {:>28}   {:>22}",
            "process", "answers", "prompts prefilled for others", "prompt tokens computed"
        )?;
        for Row { name, answers, for_others, tokens } in &self.0 {
            let tokens = tokens.map_or_else(|| "killed".to_owned(), |tokens| tokens.to_string());
            write!(f, "\n  {name:<12}{answers:>8}   {for_others:>28}   {tokens:>22}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |name, answers, for_others, tokens| Row { name, answers, for_others, tokens };
        let table = Table(vec![
            row("receiver-1", 14, 0, Some(0)),
            row("sender-1", 0, 23, Some(1840)),
            row("node-2", 3, 1, None),
        ]);
        assert_eq!(
            table.to_string(),
            "  process      answers   prompts prefilled for others   prompt tokens computed\n  \
             receiver-1        14                              0                        0\n  \
             sender-1           0                             23                     1840\n  \
             node-2             3                              1                   killed"
        );
        assert_eq!(table.handed_over(), 24);
    }
}
