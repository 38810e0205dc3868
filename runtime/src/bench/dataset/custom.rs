//! Prompts of a file, as in the dataset `custom` of vLLM's client.

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::super::LoadOptions;
use super::{BenchRequest, Part};
use crate::frontend::{Bos, Conversation, ServedModel};

/// Number of tokens in an answer if neither the line nor the command line has one; vLLM's default.
const OUTPUT_TOKENS: u32 = 256;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// From 1.
    number: usize,
    prompt: String,
    output_tokens: Option<u32>,
}

/// Takes a part of the file's prompts, in an order that depends on the seed. Begins again at the end of the file. With `--no-oversample`, it
/// ends there, so there are fewer requests than the part has.
///
/// # Errors
/// The file cannot be read, or a line is wrong, also one outside the part. The sentence has the line's number.
pub(super) fn requests(
    options: &LoadOptions,
    model: Option<&ServedModel>,
    part: Part,
) -> Result<Vec<BenchRequest>, String> {
    let path = options.dataset_path.as_deref().ok_or("set --dataset-path to a file of JSON lines")?;
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let named = |reason: String| format!("{}, {reason}", path.display());
    let mut lines = parse(text(&bytes).map_err(named)?).map_err(named)?;
    if lines.is_empty() {
        return Err(format!("{} has no lines; write one JSON object on each line", path.display()));
    }
    let short = lines.iter().find(|line| line.output_tokens.is_none());
    if let Some(line) = short.filter(|_| options.custom_output_len == Some(-1)) {
        return Err(named(format!(
            "line {}: output_tokens is missing; add it or set --custom-output-len",
            line.number
        )));
    }
    if !options.disable_shuffle {
        lines.shuffle(&mut SmallRng::seed_from_u64(options.seed));
    }
    let first = if options.no_oversample { part.first } else { part.first % lines.len() };
    let end = if options.no_oversample { lines.len() } else { usize::MAX };
    let chosen = lines.iter().cycle().take(end).skip(first).take(part.count);
    chosen.map(|line| request(options, model, path, line)).collect()
}

fn request(
    options: &LoadOptions,
    model: Option<&ServedModel>,
    path: &Path,
    line: &Line,
) -> Result<BenchRequest, String> {
    let place = || format!("{}, line {}", path.display(), line.number);
    let output_tokens = match (options.custom_output_len, line.output_tokens) {
        (None | Some(-1), tokens) => tokens.unwrap_or(OUTPUT_TOKENS),
        (Some(tokens), _) => u32::try_from(tokens).unwrap_or(OUTPUT_TOKENS),
    };
    let mut prompt = line.prompt.clone();
    if options.needs_template() {
        let template = model.and_then(|model| model.template.as_ref());
        let template = template.ok_or("the model has no chat template; set --skip-chat-template")?;
        let messages = [json!({"role": "user", "content": prompt})];
        let conversation =
            Conversation { messages: &messages, tools: None, variables: None, reply: true, continues: false };
        prompt = template
            .render(conversation)
            .map_err(|reason| format!("{}: the chat template refuses the prompt: {reason}", place()))?;
    }
    let count = |model: &ServedModel| {
        // A chat template writes the begin-of-sequence token itself.
        let bos = if options.needs_template() { Bos::Omit } else { Bos::Add };
        model.tokenizer.encode(&prompt, bos).map(|tokens| tokens.len() as u32)
    };
    let prompt_tokens = model.map(count).transpose()?.unwrap_or_default();
    Ok(BenchRequest { prompt, prompt_tokens, output_tokens })
}

/// The text of a file, without a byte order mark.
fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("line {line} is not UTF-8; convert the file to UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Reads JSON lines. Empty lines and other fields are allowed.
fn parse(text: &str) -> Result<Vec<Line>, String> {
    const LIKE: &str = r#"each line is an object such as {"prompt": "…", "output_tokens": 64}"#;
    let mut lines = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = n + 1;
        let value: Value = serde_json::from_str(line).map_err(|error| {
            let (column, reason) = (error.column(), error.to_string());
            let reason = reason.split(" at line ").next().unwrap_or_default();
            format!("line {number} is not valid JSON (column {column}): {reason}; {LIKE}")
        })?;
        let prompt = value["prompt"].as_str().ok_or_else(|| format!("line {number}: no prompt; {LIKE}"))?;
        // Tables that were converted to JSON have whole numbers such as 64.0.
        let allowed = 1.0..=f64::from(u32::MAX);
        let whole = |value: &Value| value.as_f64().filter(|n| n.fract() == 0.0 && allowed.contains(n));
        let output_tokens = match &value["output_tokens"] {
            Value::Null => None,
            tokens => Some(whole(tokens).map(|tokens| tokens as u32).ok_or_else(|| {
                format!(
                    "line {number}: output_tokens is {tokens}; set it to a whole number from 1 to {}",
                    u32::MAX
                )
            })?),
        };
        lines.push(Line { number, prompt: prompt.to_owned(), output_tokens });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::testing::options;
    use crate::frontend::testing::bytes_model;

    #[test]
    fn lines_are_read_and_errors_name_them() {
        let line =
            |number, prompt: &str, output_tokens| Line { number, prompt: prompt.to_owned(), output_tokens };
        let text = "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"output_tokens\": 7.0, \"id\": 3}\n";
        assert_eq!(parse(text).unwrap(), [line(1, "a", None), line(3, "b", Some(7))]);
        for (text, expect) in [
            (
                "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"",
                "line 2 is not valid JSON (column 14): EOF while parsing an object; each line",
            ),
            (
                "{\"prompt\": \"a\", \"output_tokens\": 4294967296}",
                "line 1: output_tokens is 4294967296; set it",
            ),
            ("\n[1]", "line 2: no prompt"),
            ("{\"prompt\": 5}", "line 1: no prompt"),
            ("{\"prompt\": \"a\", \"output_tokens\": 0}", "line 1: output_tokens is 0; set it"),
            ("{\"prompt\": \"a\", \"output_tokens\": \"x\"}", "line 1: output_tokens is \"x\"; set it"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expect), "{error}");
        }
    }

    #[test]
    fn files_may_begin_with_a_mark_and_must_be_utf8() {
        assert_eq!(text("\u{feff}{}".as_bytes()), Ok("{}"));
        let error = text(b"{}\n{\"prompt\": \"\xff\"}\n").unwrap_err();
        assert!(error.starts_with("line 2 is not UTF-8"), "{error}");
    }

    /// Requests of a file with prompts 0 to 4, of which the first has a length.
    fn of_file(arguments: &[&str], part: Part) -> Result<Vec<(String, u32)>, String> {
        let name = format!("baton-custom-{}-{:?}.jsonl", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let lines = (1..5).map(|n| format!("{{\"prompt\": \"{n}\"}}\n"));
        let first = "{\"prompt\": \"0\", \"output_tokens\": 9}\n".to_owned();
        std::fs::write(&path, std::iter::once(first).chain(lines).collect::<String>()).unwrap();
        let file = path.display().to_string();
        let common = ["--dataset-name", "custom", "--dataset-path", &file, "--skip-chat-template"];
        let options = options(&[&common, arguments].concat()).load;
        let made = requests(&options, None, part);
        std::fs::remove_file(path).unwrap();
        Ok(made?.into_iter().map(|request| (request.prompt, request.output_tokens)).collect())
    }

    #[test]
    fn prompts_follow_order_and_length_of_the_options() {
        let all = Part { first: 0, count: 7 };
        let owned = |all: &[(&str, u32)]| all.iter().map(|(p, n)| ((*p).to_owned(), *n)).collect::<Vec<_>>();
        let in_order = of_file(&["--disable-shuffle"], all).unwrap();
        let expect = [("0", 9), ("1", 256), ("2", 256), ("3", 256), ("4", 256), ("0", 9), ("1", 256)];
        assert_eq!(in_order, owned(&expect));
        let later = of_file(&["--disable-shuffle", "--custom-output-len", "5"], Part { first: 8, count: 2 });
        assert_eq!(later.unwrap(), owned(&[("3", 5), ("4", 5)]));
        assert_eq!(of_file(&["--no-oversample"], all).unwrap().len(), 5);
        let rest = of_file(&["--disable-shuffle", "--no-oversample"], Part { first: 3, count: 4 });
        assert_eq!(rest.unwrap(), owned(&[("3", 256), ("4", 256)]));
        assert_eq!(of_file(&["--no-oversample"], Part { first: 5, count: 1 }), Ok(Vec::new()));

        let shuffled = |seed: &str| of_file(&["--no-oversample", "--seed", seed], all).unwrap();
        assert_eq!(shuffled("1"), shuffled("1"));
        assert!((2..9).any(|seed| shuffled(&seed.to_string()) != shuffled("1")), "the seed has no effect");

        // The second line is wrong, also if only the first one is sent.
        let first = Part { first: 0, count: 1 };
        let error = of_file(&["--disable-shuffle", "--custom-output-len", "-1"], first).unwrap_err();
        assert!(error.contains("line 2: output_tokens is missing"), "{error}");
    }

    #[test]
    fn completions_get_the_chat_template() {
        let model = ServedModel::new(Path::new("m"), &bytes_model(), None).unwrap();
        let line = Line { number: 1, prompt: "hi".to_owned(), output_tokens: None };
        let prompt = |arguments: &[&str]| {
            let made = request(&options(arguments).load, Some(&model), Path::new("p"), &line).unwrap();
            (made.prompt, made.prompt_tokens)
        };
        let chat = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        // The special tokens are one token each, the other characters too.
        assert_eq!(prompt(&[]), (chat.to_owned(), 3 + 5 + 2 + 1 + 10));
        assert_eq!(prompt(&["--skip-chat-template"]), ("hi".to_owned(), 2));
        assert_eq!(prompt(&["--backend", "openai-chat"]), ("hi".to_owned(), 2), "the server renders it");
    }
}
