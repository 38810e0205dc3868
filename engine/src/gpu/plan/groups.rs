//! Groups of prompts whose pages fit in the memory for their keys and values in bf16.

use std::ops::Range;

/// Consecutive prompts of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptGroup {
    /// Their numbers among the step's prompts.
    pub(crate) chunks: Range<usize>,
    /// Their entries in the prompts' page list.
    pub(crate) pages: Range<usize>,
}

/// Splits the prompts of a step into groups of at most `pages_max` pages. A prompt with more pages has a group of its own. `page_starts` has the first entry
/// of each prompt in the page list, and then the list's length.
///
/// The results of attention do not depend on the groups: a row's result depends only on its own sequence.
pub(crate) fn groups(page_starts: &[i32], pages_max: usize) -> Vec<PromptGroup> {
    let mut groups: Vec<PromptGroup> = Vec::new();
    for (chunk, ends) in page_starts.windows(2).enumerate() {
        let (start, end) = (ends[0] as usize, ends[1] as usize);
        match groups.last_mut() {
            Some(group) if end - group.pages.start <= pages_max => {
                (group.chunks.end, group.pages.end) = (chunk + 1, end);
            }
            _ => groups.push(PromptGroup { chunks: chunk..chunk + 1, pages: start..end }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_as_large_as_fit() {
        let check = |starts: &[i32], pages_max, expect: &[(Range<usize>, Range<usize>)]| {
            let expect: Vec<_> =
                expect.iter().cloned().map(|(chunks, pages)| PromptGroup { chunks, pages }).collect();
            assert_eq!(groups(starts, pages_max), expect, "{starts:?} {pages_max}");
        };
        check(&[0], 10, &[]);
        check(&[0, 4], 10, &[(0..1, 0..4)]);
        check(&[0, 4, 7, 10], 10, &[(0..3, 0..10)]);
        check(&[0, 4, 7, 11, 12], 10, &[(0..2, 0..7), (2..4, 7..12)]);
        check(&[0, 4, 24, 26], 10, &[(0..1, 0..4), (1..2, 4..24), (2..3, 24..26)]);
    }
}
