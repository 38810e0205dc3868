//! The lists of a step's prompts that only the host reads, to plan their attention.

/// Lists with an entry for each prompt. Prompts are the first chunks of a step.
#[derive(Debug)]
pub(crate) struct PromptLists {
    /// The first row of each prompt, then the number of all rows.
    pub(crate) row_starts: Vec<i32>,
    /// The index of each prompt's first entry in the prompts' page list, then the list's length.
    pub(crate) page_starts: Vec<i32>,
    /// KV tokens of each prompt.
    pub(crate) kv_tokens: Vec<i32>,
}

impl PromptLists {
    /// Empty lists with memory for `prompts` prompts.
    pub(super) fn new(prompts: usize) -> Self {
        let mut lists = Self {
            row_starts: Vec::with_capacity(prompts + 1),
            page_starts: Vec::with_capacity(prompts + 1),
            kv_tokens: Vec::with_capacity(prompts),
        };
        lists.clear();
        lists
    }

    /// Removes all prompts.
    pub(super) fn clear(&mut self) {
        let Self { row_starts, page_starts, kv_tokens } = self;
        [row_starts, page_starts].into_iter().for_each(|starts| {
            starts.clear();
            starts.push(0);
        });
        kv_tokens.clear();
    }

    /// Adds a prompt with `kv_tokens` KV tokens, which ends before row `rows` and entry `pages` of the page list.
    pub(super) fn push(&mut self, kv_tokens: usize, (rows, pages): (usize, usize)) {
        self.row_starts.push(rows as i32);
        self.page_starts.push(pages as i32);
        self.kv_tokens.push(kv_tokens as i32);
    }
}
