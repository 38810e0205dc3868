//! The page table of a sequence.

use std::ops::Deref;
use std::sync::Arc;

use super::PageId;

/// The pages of a sequence, in the order of its positions. Clones share the memory.
///
/// A table knows its largest page. An engine compares that page with its pool, so the check of a long table takes no longer than that of a short one. Each page
/// is looked at once, when it enters a table:
///
/// ```
/// use engine::{PageId, PageTable};
///
/// let table = PageTable::from([PageId(7), PageId(2)]);
/// assert_eq!(table.largest(), Some(PageId(7)));
/// let longer = table.extended(&[PageId(9)]);
/// assert_eq!((longer.len(), longer.largest()), (3, Some(PageId(9))));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    pages: Arc<[PageId]>,
    /// The largest of `pages`. Kernels do not check pages, so this must hold.
    largest: Option<PageId>,
}

impl PageTable {
    /// The largest page. `None` if the table is empty.
    #[must_use]
    pub fn largest(&self) -> Option<PageId> {
        self.largest
    }

    /// The table with more pages at its end.
    #[must_use]
    pub fn extended(&self, more: &[PageId]) -> Self {
        Self {
            pages: self.pages.iter().chain(more).copied().collect(),
            largest: self.largest.max(more.iter().copied().max()),
        }
    }
}

impl Deref for PageTable {
    type Target = [PageId];

    fn deref(&self) -> &[PageId] {
        &self.pages
    }
}

impl From<Vec<PageId>> for PageTable {
    fn from(pages: Vec<PageId>) -> Self {
        Self { largest: pages.iter().copied().max(), pages: pages.into() }
    }
}

impl<const COUNT: usize> From<[PageId; COUNT]> for PageTable {
    fn from(pages: [PageId; COUNT]) -> Self {
        Vec::from(pages).into()
    }
}

impl FromIterator<PageId> for PageTable {
    fn from_iter<Pages: IntoIterator<Item = PageId>>(pages: Pages) -> Self {
        Vec::from_iter(pages).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_knows_its_largest_page(parts in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..5), 0..5)) {
            let parts: Vec<Vec<PageId>> =
                parts.into_iter().map(|part| part.into_iter().map(PageId).collect()).collect();
            let all: Vec<PageId> = parts.concat();
            let table = parts.iter().fold(PageTable::default(), |table, part| table.extended(part));
            prop_assert_eq!(&table[..], &all[..]);
            prop_assert_eq!(table.largest(), all.iter().copied().max());
            prop_assert_eq!(table, all.into());
        }
    }
}
