//! The row counts that GEMMs are planned for. They are a fixed set, known when an engine opens.
//!
//! A row's result does not depend on the number of rows in the GEMM, to the bit. So a GEMM may compute more rows than its
//! step has. It computes the next multiple of [`MULTIPLE`] or slightly more, and a plan serves every row count up to its
//! own. The padding rows hold data of earlier steps; their results are not read.

/// GEMMs are planned for multiples of this many rows. cublasLt's tiles have 64 rows or more, so rounding up adds no tile.
const MULTIPLE: usize = 32;

/// The search tries up to this many rows above the multiple, in steps of [`STEP`]. For some row counts cublasLt has no good
/// kernel without split-K, but it has one for a slightly larger count.
const SEARCH: usize = 64;
const STEP: usize = 4;

/// Maximum number of padding rows of a GEMM. Buffers have room for them.
pub(crate) const SPARE: usize = MULTIPLE + SEARCH;

/// The planned row count that serves `rows` rows.
pub(crate) const fn planned(rows: usize) -> usize {
    rows.next_multiple_of(MULTIPLE)
}

/// Every planned row count that serves more than `few` and up to `max` rows.
pub(crate) fn all_planned(few: usize, max: usize) -> impl Iterator<Item = usize> {
    (planned(few + 1)..=planned(max)).step_by(MULTIPLE)
}

/// Returns the first good plan for `rows` rows or slightly more. If there is no good plan, returns the plan for exactly
/// `rows`, or `None` if there is none. `prepare` makes the plan for a row count if the library has one.
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

    /// The rows that a GEMM computes if the library has good kernels for the row counts where `good` is true.
    fn chosen(rows: usize, good: impl Fn(usize) -> bool) -> Option<usize> {
        choose(planned(rows), Some, |rows| good(*rows))
    }

    #[test]
    fn a_gemm_computes_all_rows_and_stays_within_the_buffers() {
        for rows in 1..=8448 {
            // The largest row count that the search tries.
            let last = chosen(rows, |count| count == planned(rows) + SEARCH).unwrap();
            assert!(planned(rows) >= rows && last <= rows + SPARE, "{rows}: {} to {last}", planned(rows));
        }
    }

    #[test]
    fn plans_cover_every_row_count_up_to_the_largest_step() {
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
    fn a_row_count_without_a_plan_is_skipped() {
        let prepare = |refused: fn(usize) -> bool| move |rows| (!refused(rows)).then_some(rows);
        assert_eq!(choose(64, prepare(|rows| rows < 80), |_| true), Some(80));
        assert_eq!(choose(64, prepare(|rows| rows == 68), |rows| *rows > 64), Some(72));
        assert_eq!(choose(64, prepare(|_| true), |_| true), None);
    }
}
