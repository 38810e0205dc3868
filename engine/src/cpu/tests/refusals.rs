//! Refused batches, configurations and files.

use super::*;
use crate::error::Scope;
use crate::sampling::Sampling;
use crate::testing::GgufWriter;

#[test]
fn bad_batches_are_refused_and_change_nothing() {
    let (_file, _, mut engine) = open(&MODELS[0]);
    let (apart, pages) = (pages(&engine, 1), pages(&engine, 0));
    let tokens = prompt(1, 20);
    let expect = alone(&mut engine, &tokens, &[], 0);
    let good = Chunk {
        sequence: 9,
        tokens: &tokens[19..],
        source: TokenSource::Prompt,
        start: 19,
        pages: &pages,
        sample: Some(Sample::greedy()),
        score: None,
    };
    // The bad page is the last one of a long table.
    let outside: PageTable = (0..=engine.kv.pages()).map(PageId).collect();
    let [short, empty, twice] =
        [&pages[..2], &[], &[pages[0]; 2]].map(|pages| PageTable::from(pages.to_vec()));
    let long = vec![1; 257];
    let how = Sampling { presence_penalty: 1.0, ..Sampling::GREEDY };
    let sample = |tokens| Sample { how: &how, tokens, ..Sample::greedy() };
    let mut check = |batch: &[Chunk<'_>], expect: &str| {
        let error = engine.submit(batch).unwrap_err();
        assert_eq!(error.kind(), expect, "{error}");
        let scope = if expect == "too_many_tokens" { Scope::Step } else { Scope::Sequence(9) };
        assert_eq!(error.scope(), scope, "{error}");
    };
    check(&[Chunk { tokens: &[], ..good }], "empty_chunk");
    check(&[Chunk { source: TokenSource::Follows, ..good }], "follows_nothing");
    let two = Chunk { tokens: &tokens[18..], start: 18, source: TokenSource::Sampled, ..good };
    check(&[two], "many_sampled");
    let other = Chunk { sequence: 8, ..good };
    check(&[other, Chunk { tokens: &[Tiny::VOCABULARY], ..good }], "token_out_of_range");
    check(&[Chunk { tokens: &long, start: 0, ..good }], "too_many_tokens");
    check(&[Chunk { start: Tiny::CONTEXT, ..good }], "context_exceeded");
    check(&[Chunk { start: u32::MAX, ..good }], "context_exceeded");
    check(&[Chunk { pages: &short, ..good }], "too_few_pages");
    check(&[Chunk { pages: &empty, ..good }], "too_few_pages");
    check(&[Chunk { pages: &outside, start: 0, ..good }], "page_out_of_range");
    check(&[other, good], "page_written_twice");
    check(&[good, other, Chunk { pages: &apart, ..good }], "repeated_sequence");
    check(&[Chunk { sample: Some(sample(&tokens[..19])), ..good }], "short_history");
    check(&[Chunk { sample: Some(sample(&[])), ..good }], "short_history");
    check(&[Chunk { tokens: &tokens[..16], start: 0, pages: &twice, ..good }], "page_written_twice");
    let error = engine.acquire(&outside).unwrap_err();
    assert_eq!((error.kind(), error.scope()), ("page_out_of_range", Scope::Step));
    submit(&mut engine, &[good]);
    assert_eq!(bits(engine.logits(0).unwrap()), expect);
}

#[test]
fn a_history_has_the_tokens_before_the_sample() {
    let (_file, _, engine) = open(&MODELS[0]);
    let (pages, tokens) = (pages(&engine, 0), prompt(1, 20));
    let penalised = Sampling { frequency_penalty: 0.5, ..Sampling::GREEDY };
    let check = |how: &Sampling, source, known: usize| {
        let sample = Some(Sample { how, tokens: &tokens[..known], ..Sample::greedy() });
        let (tokens, score) = (&tokens[14..15], None);
        let chunk = Chunk { sequence: 9, tokens, source, start: 14, pages: &pages, sample, score };
        BatchCheck::default().check(&[chunk], &engine.model, &engine.kv, engine.limits, |_| true)
    };
    let short = |needed, given| Err(EngineError::ShortHistory { sequence: 9, needed, given });
    assert_eq!(check(&penalised, TokenSource::Sampled, 15), Ok(()));
    assert_eq!(check(&penalised, TokenSource::Sampled, 14), short(15, 14));
    assert_eq!(check(&penalised, TokenSource::Prompt, 14), short(15, 14));
    // The step that samples the last token may still run.
    assert_eq!(check(&penalised, TokenSource::Follows, 14), Ok(()));
    assert_eq!(check(&penalised, TokenSource::Follows, 13), short(14, 13));
    assert_eq!(check(&Sampling::GREEDY, TokenSource::Sampled, 0), Ok(()), "it does not look back");
}

#[test]
fn only_rows_with_logits_count_against_the_row_limit() {
    let (_file, _, mut engine) = open(&MODELS[0]);
    engine.limits.rows = 2;
    let tables: Vec<PageTable> = (0..4).map(|page| [PageId(page)].into()).collect();
    let tokens = prompt(1, 3);
    let chunk = |sequence: u64, source, sample| Chunk {
        sequence,
        tokens: &tokens[..1],
        source,
        start: 0,
        pages: &tables[sequence as usize],
        sample,
        score: None,
    };
    let sampled = |sequence| chunk(sequence, TokenSource::Prompt, Some(Sample::greedy()));
    let decoded = |sequence| chunk(sequence, TokenSource::Sampled, None);
    let prompt = chunk(3, TokenSource::Prompt, None);
    submit(&mut engine, &[sampled(0), decoded(1), prompt]);
    let error = engine.submit(&[sampled(0), decoded(1), decoded(2), prompt]).unwrap_err();
    assert_eq!(error, EngineError::TooManyRows { rows: 3, limit: 2 });
    assert_eq!(error.scope(), Scope::Step);
}

#[test]
fn bad_limits_are_refused() {
    let model = MODELS[0];
    let (_file, config) = model.file();
    let check = |change: &dyn Fn(&mut EngineConfig), expect: &str| {
        let mut config = config.clone();
        change(&mut config);
        let error = CpuEngine::open(&config).err().unwrap();
        assert_eq!(error.kind(), expect, "{error}");
    };
    check(&|config| config.page_tokens = Some(0), "bad_page_tokens");
    check(&|config| config.page_tokens = Some(4097), "bad_page_tokens");
    check(&|config| config.threads = 0, "bad_threads");
    check(&|config| config.threads = 257, "bad_threads");
    check(&|config| config.step_tokens = 0, "bad_step_tokens");
    check(&|config| config.kv_bytes = 0, "kv_too_small");
    check(&|config| config.kv_bytes = 32 * model.kv_bytes() - 1, "kv_too_small");
    check(&|config| config.model = "/nonexistent/model.gguf".into(), "model_missing");
    let least = EngineConfig { kv_bytes: 32 * model.kv_bytes(), ..config.clone() };
    assert_eq!(CpuEngine::open(&least).unwrap().kv().pages(), 4);
}

fn refused(bytes: &[u8]) -> OpenError {
    let file = TempFile::new("refused.gguf", bytes);
    let config = EngineConfig { model: file.path().to_owned(), ..MODELS[0].file().1 };
    CpuEngine::open(&config).err().unwrap()
}

#[test]
fn unsupported_files_are_refused() {
    let check = |change: &dyn Fn(&mut GgufWriter), expect: &str, says: &str| {
        let mut writer = MODELS[0].build().0;
        change(&mut writer);
        let error = refused(&writer.finish());
        assert_eq!(error.kind(), expect, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let bias = |writer: &mut GgufWriter| {
        writer.tensor("blk.0.attn_q.bias", &[128], 0, vec![0; 512]);
    };
    check(&bias, "unsupported_model", "attn_q.bias");
    let scaled = |writer: &mut GgufWriter| {
        writer.text("llama.rope.scaling.type", "yarn");
    };
    check(&scaled, "unsupported_model", "yarn");
    let partial = |writer: &mut GgufWriter| {
        writer.u32("llama.rope.dimension_count", 16);
    };
    check(&partial, "unsupported_model", "llama.rope.dimension_count is 16");
    let huge = |writer: &mut GgufWriter| {
        *writer = GgufWriter::default();
        writer.text("general.architecture", "llama").tensor("token_embd.weight", &[32, 32], 8, vec![0; 1088]);
        writer.u32("llama.embedding_length", 32).u32("llama.attention.head_count", u32::MAX);
    };
    check(&huge, "unsupported_model", "llama.attention.head_count is missing or not between 1 and 4096");
    let empty = |writer: &mut GgufWriter| *writer = GgufWriter::default();
    check(&empty, "unsupported_architecture", "none");
    let other = |writer: &mut GgufWriter| {
        *writer = GgufWriter::default();
        writer.text("general.architecture", "gemma");
    };
    check(&other, "unsupported_architecture", "gemma");
    check(&other, "unsupported_architecture", "Llama, Qwen2, Qwen3, Mistral");
    let windowed = |writer: &mut GgufWriter| {
        writer.u32("llama.attention.sliding_window", Tiny::CONTEXT - 1);
    };
    check(&windowed, "unsupported_model", "sliding window has 255 tokens, fewer than its context of 256");
    let iq2 = Tiny { kind: 16, ..MODELS[0] }.build().0.finish();
    let text = refused(&iq2).to_string();
    assert!(text.contains("stored as type 16") && text.contains("Q6_K"), "{text}");
    assert_eq!(refused(b"not a model").kind(), "not_gguf");
}

#[test]
fn truncation_is_reported_before_a_wrong_checksum() {
    let (file, config) = MODELS[0].file();
    let bytes = std::fs::read(file.path()).unwrap();
    std::fs::write(file.checksum_path(), "0".repeat(64)).unwrap();
    assert_eq!(CpuEngine::open(&config).err().unwrap().kind(), "wrong_checksum");
    std::fs::write(file.path(), &bytes[..bytes.len() - 1000]).unwrap();
    let error = CpuEngine::open(&config).err().unwrap();
    assert_eq!(error.kind(), "model_truncated");
    assert!(error.to_string().contains(&format!("has {}", bytes.len() - 1000)), "{error}");
}

#[test]
fn the_checksum_file_is_checked() {
    let (file, config) = MODELS[0].file();
    let fingerprint = CpuEngine::open(&config).unwrap().model().fingerprint;
    let hex: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    let check = |text: &str, expect: Option<&str>| {
        std::fs::write(file.checksum_path(), text).unwrap();
        assert_eq!(CpuEngine::open(&config).err().map(|error| error.kind()), expect, "{text}");
    };
    check(&hex, None);
    check(&format!("{}  tiny.gguf\n", hex.to_uppercase()), None);
    check("", Some("bad_checksum_file"));
    check("cafe", Some("bad_checksum_file"));
    check(&"ab".repeat(32), Some("wrong_checksum"));
    std::fs::write(file.checksum_path(), "ab".repeat(32)).unwrap();
    let text = CpuEngine::open(&config).err().unwrap().to_string();
    assert!(
        text.contains(&hex[..12]) && text.contains("abababababab…") && text.contains("fetch it again"),
        "{text}"
    );
}
