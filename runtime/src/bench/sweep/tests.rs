use super::super::testing::sweep_options;
use super::*;

#[test]
fn options_that_measure_something_else_are_refused() {
    for (arguments, expect) in [
        (&["--max-concurrency", "4"][..], "does not take --max-concurrency"),
        (&["--ttft", "inf"], "--ttft is inf"),
        (&["--gap", "NaN"], "--gap is NaN"),
        (&["--from", "1", "--max-rate", "100", "--factor", "1.001"], "more than 100 rates"),
        (&["--bisect", "101"], "--bisect is 101"),
        (&["--rates", "2,1"], "in rising order"),
    ] {
        let error = check(&sweep_options(arguments)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
    check(&sweep_options(&["--rates", "1,2", "--ttft", "500"])).unwrap();
}

#[test]
fn each_outcome_has_its_sentence() {
    for (points, expect) in [
        (&[(1.0, 100.0), (2.0, 80.0)][..], "Goodput: 1.50 requests/s"),
        (&[(1.0, 100.0), (2.0, 95.0)], "The goodput is above 2.00 requests/s"),
        (&[(1.0, 10.0), (2.0, 5.0)], "The goodput is below 1.00 requests/s"),
        // The lower planned rate arrived faster.
        (&[(2.1, 100.0), (2.0, 80.0)], "The goodput is unknown"),
        (&[], "No rate was measured"),
    ] {
        let text = verdict(points, 90.0);
        assert!(text.starts_with(expect), "{text}");
    }
}
