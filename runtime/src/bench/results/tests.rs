use std::time::Duration;

use super::*;
use crate::bench::testing::options;

fn outputs() -> Vec<RequestOutcome> {
    let good = |start: f64, ttft: f64, itl: f64, tokens: u32| RequestOutcome {
        start,
        ttft,
        itls: vec![itl; tokens as usize - 1],
        latency: ttft + itl * f64::from(tokens - 1),
        prompt_tokens: 10,
        output_tokens: tokens,
        ..RequestOutcome::default()
    };
    let bad = RequestOutcome { error: "500".to_owned(), prompt_tokens: 10, ..RequestOutcome::default() };
    vec![good(0.0, 0.1, 0.01, 11), good(0.5, 0.3, 0.03, 11), bad, good(1.2, 0.2, 0.02, 1)]
}

#[test]
fn the_block_is_vllms() {
    let options = options(&["--request-rate", "1", "--max-concurrency", "8", "--goodput", "ttft:250"]);
    let outputs = outputs();
    let expect = "\
============ Serving Benchmark Result ============
Successful requests:                     3         
Failed requests:                         1         
Maximum request concurrency:             8         
Request rate configured (RPS):           1.00      
Benchmark duration (s):                  2.00      
Total input tokens:                      30        
Total generated tokens:                  23        
Request throughput (req/s):              1.50      
Request goodput (req/s):                 1.00      
Output token throughput (tok/s):         11.50     
Peak output token throughput (tok/s):    18.00     
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          26.50     
---------------Time to First Token----------------
Mean TTFT (ms):                          200.00    
Median TTFT (ms):                        200.00    
P99 TTFT (ms):                           298.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          20.00     
Median TPOT (ms):                        20.00     
P99 TPOT (ms):                           29.80     
---------------Inter-token Latency----------------
Mean ITL (ms):                           20.00     
Median ITL (ms):                         20.00     
P99 ITL (ms):                            30.00     
==================================================
";
    assert_eq!(Results::new(&options, &outputs, 2.0).block(), expect);
}

#[test]
fn the_file_has_vllms_names() {
    let outputs = outputs();
    let options = options(&["--save-detailed", "--metadata", "gpu=none", "--percentile-metrics", "e2el"]);
    let client =
        BenchClient::new(&options.load, "http://a:1".to_owned(), "m".to_owned(), None, Duration::MAX)
            .unwrap();
    let json = Results::new(&options, &outputs, 2.0).json("20261125-000000", &client);
    assert_eq!((&json["request_rate"], &json["burstiness"]), (&json!("inf"), &json!(1.0)));
    assert_eq!((&json["completed"], &json["failed"], &json["gpu"]), (&json!(3), &json!(1), &json!("none")));
    assert_eq!((&json["server"], &json["seed"]), (&json!("http://a:1"), &json!(0)));
    assert_eq!((&json["request_goodput"], &json["output_lens"]), (&Value::Null, &json!([11, 11, 0, 1])));
    assert_eq!(json["p99_ttft_ms"], Value::Null, "it was not asked for");
    let median = json["median_e2el_ms"].as_f64().unwrap();
    assert!((median - 200.0).abs() < 1e-6, "{median}");
    assert_eq!(json["errors"][2], "500");
    assert_eq!(json["queue_times"][0], 0.0);
}

#[test]
fn metadata_does_not_replace_figures() {
    for name in ["kind", "completed", "ttfts", "p99_itl_ms"] {
        let options = options(&["--save-detailed", "--metadata", &format!("{name}=x")]);
        let client =
            BenchClient::new(&options.load, "http://a:1".to_owned(), "m".to_owned(), None, Duration::MAX)
                .unwrap();
        let error = Results::check_metadata(&options, &client).unwrap_err().to_string();
        assert!(error.contains(&format!("--metadata has the name {name:?}")), "{error}");
    }
}
