//! For which numbers of rows matrix products are planned: a fixed set, known when an engine opens.
//!
//! A row's result does not depend on how many rows a product computes, to the bit, so a product may compute more rows than its step has. It
//! computes the next multiple of [`MULTIPLE`] or some more, and a plan serves every number of rows up to its own. The rows that a step does
//! not have hold what earlier steps left in the buffers; their results are not read.

/// Products are planned for multiples of this many rows. The library's tiles have 64 rows or more, so rounding up adds no tile.
const MULTIPLE: usize = 32;

/// How many rows above the multiple are tried, in steps of [`STEP`]: for some numbers of rows the library has no good kernel that sums a row's
/// inputs in one run, and for some a little larger it has.
const SEARCH: usize = 64;
const STEP: usize = 4;

/// How many rows more than its step has a product may compute: what buffers have room for.
pub(crate) const SPARE: usize = MULTIPLE + SEARCH;

/// The planned number of rows that serves `rows` rows.
pub(crate) const fn planned(rows: usize) -> usize {
    rows.next_multiple_of(MULTIPLE)
}

/// Every planned number of rows that serves more than `few` and up to `most` rows.
pub(crate) fn all_planned(few: usize, max: usize) -> impl Iterator<Item = usize> {
    (planned(few + 1)..=planned(max)).step_by(MULTIPLE)
}

/// The first good plan among `rows` rows and a few more, else the plan for exactly `rows`, and `None` where there is none. `prepare` makes the plan for a number
/// of rows, if the library has one.
pub(crate) fn choose<T>(
    rows: usize,
    mut prepare: impl FnMut(usize) -> Option<T>,
    is_good: impl Fn(&T) -> bool,
) -> Option<T> {
    let exact = prepare(rows);
    if exact.as_ref().is_some_and(&is_good) {
        return exact;
    }
    (STEP..=SEARCH).step_by(STEP).filter_map(|more| prepare(rows + more)).find(is_good).or(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a product computes where the library has good kernels for the row counts that `good` names.
    fn chosen(rows: usize, good: impl Fn(usize) -> bool) -> Option<usize> {
        choose(planned(rows), Some, |rows| good(*rows))
    }

    #[test]
    fn a_product_computes_all_rows_and_no_more_than_buffers_have() {
        for rows in 1..=8448 {
            // The last one that is tried.
            let last = chosen(rows, |count| count == planned(rows) + SEARCH).unwrap();
            assert!(planned(rows) >= rows && last <= rows + SPARE, "{rows}: {} to {last}", planned(rows));
        }
    }

    #[test]
    fn plans_are_as_many_as_the_largest_step_needs() {
        for (few, max) in [(32, 8448), (32, 1024), (32, 33), (0, 1), (32, 256)] {
            let all: Vec<usize> = all_planned(few, max).collect();
            assert!((few + 1..=max).all(|rows| all.contains(&planned(rows))), "{few} {max}: {all:?}");
            assert!(all.len() <= (max - few).div_ceil(MULTIPLE) + 1, "{few} {max}: {all:?}");
        }
        assert_eq!(all_planned(32, 8448).count(), 263);
        assert_eq!(all_planned(32, 32).count(), 0);
        assert_eq!(all_planned(32, 1).count(), 0);
    }

    #[test]
    fn the_first_good_plan_is_taken() {
        assert_eq!(chosen(33, |_| true), Some(64));
        assert_eq!(chosen(64, |rows| rows > 64), Some(68));
        assert_eq!(chosen(64, |rows| rows == 128), Some(128));
        assert_eq!(chosen(64, |_| false), Some(64));
    }

    #[test]
    fn the_library_is_asked_a_bounded_number_of_times() {
        let mut asked = Vec::new();
        let found = choose(
            96,
            |rows| {
                asked.push(rows);
                Some(rows)
            },
            |_| false,
        );
        assert_eq!((found, asked.len(), asked[16]), (Some(96), 17, 160));
    }

    #[test]
    fn a_row_count_that_the_library_refuses_is_passed_over() {
        let prepare = |refused: fn(usize) -> bool| move |rows| (!refused(rows)).then_some(rows);
        assert_eq!(choose(64, prepare(|rows| rows < 80), |_| true), Some(80));
        assert_eq!(choose(64, prepare(|rows| rows == 68), |rows| *rows > 64), Some(72));
        assert_eq!(choose(64, prepare(|_| true), |_| true), None);
    }
}
