use proptest::prelude::*;

use super::*;

const NAMES: [&str; 2] = ["get_weather", "add"];

fn parser(format: ToolFormat) -> ToolParser {
    ToolParser::new(format, NAMES.map(str::to_owned).into(), false, format != ToolFormat::Mistral)
}

/// The content and the calls of an answer that comes in these pieces.
fn parse(mut parser: ToolParser, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut content = String::new();
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut take = |deltas: Vec<ToolDelta>| {
        for delta in deltas {
            match delta {
                ToolDelta::Content(text) => content += &text,
                ToolDelta::Call(name) => calls.push((name, String::new())),
                ToolDelta::Arguments(text) => calls.last_mut().expect("a call has begun").1 += &text,
            }
        }
    };
    pieces.iter().for_each(|piece| take(parser.push(piece)));
    take(parser.finish());
    (content, calls)
}

/// An answer, its content, and the names and arguments of its calls.
type Answer = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Answers of models, and their content and calls. The first ones are the models' usual form.
const HERMES: &[Answer] = &[
    (
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris, \\\"}é\", \"days\": [1, 2]}}\n</tool_call>",
        "",
        &[("get_weather", "{\"city\": \"Paris, \\\"}é\", \"days\": [1, 2]}")],
    ),
    (
        "Let me look.\n\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>\n",
        "Let me look.",
        &[("add", "{\"a\":1}"), ("add", "{}")],
    ),
    // Other orders, keys and forms.
    (
        "<tool_call>{\"arguments\": {\"a\": {\"b\": null}}, \"id\": 7, \"name\": \"add\"}</tool_call> Done.",
        " Done.",
        &[("add", "{\"a\": {\"b\": null}}")],
    ),
    (
        "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
        "",
        &[("add", "{\"a\": 1}")],
    ),
    ("<tool_call>{\"name\": \"add\", \"arguments\": null}</tool_call>", "", &[("add", "{}")]),
    ("<tool_call>{\"name\": \"add\"}</tool_call>", "", &[("add", "{}")]),
    ("<tool_call>{\"name\": \"other\", \"arguments\": {}}}\n</tool_call>", "", &[("other", "{}")]),
    // The answer ends early.
    ("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1", "", &[("add", "{\"a\": 1")]),
    ("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool", "", &[("add", "{\"a\": 1}")]),
    ("a <tool_call>\n{\"name\": \"ad", "a <tool_call>\n{\"name\": \"ad", &[]),
    ("a <tool_", "a <tool_", &[]),
    // No calls.
    ("a < b\n", "a < b\n", &[]),
    ("", "", &[]),
    ("a <tool_call>\nadd(1)\n</tool_call> b", "a <tool_call>\nadd(1)\n</tool_call> b", &[]),
    (
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        &[],
    ),
    (
        "<tool_call>{\"name\": \"add\", \"arguments\": [1]}",
        "<tool_call>{\"name\": \"add\", \"arguments\": [1]}",
        &[],
    ),
    ("<tool_call>{'name': 'add'}</tool_call>", "<tool_call>{'name': 'add'}</tool_call>", &[]),
    // As Qwen2.5-Coder writes them.
    ("{\"name\": \"add\", \"arguments\": {\"a\": 3}}", "", &[("add", "{\"a\": 3}")]),
    (
        "```json\n{\n  \"name\": \"add\",\n  \"arguments\": {\n    \"a\": 3\n  }\n}\n```\n```json\n{\"name\": \"add\", \"arguments\": {}}\n```\nDone.",
        "\nDone.",
        &[("add", "{\n    \"a\": 3\n  }"), ("add", "{}")],
    ),
    ("{\"name\": \"Joke\", \"arguments\": {}}", "{\"name\": \"Joke\", \"arguments\": {}}", &[]),
    ("```json\n{\"a\": 1}\n```", "```json\n{\"a\": 1}\n```", &[]),
    ("```python\nadd\n```", "```python\nadd\n```", &[]),
    ("a {\"name\": \"add\", \"arguments\": {}}", "a {\"name\": \"add\", \"arguments\": {}}", &[]),
    ("```", "```", &[]),
    // The arguments are broken off.
    (
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1</tool_call><tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>",
        "",
        &[("add", "{\"a\": 1"), ("add", "{}")],
    ),
];

const LLAMA: &[Answer] = &[
    (
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        "",
        &[("get_weather", "{\"city\": \"Paris\"}")],
    ),
    (
        "<|python_tag|>{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"add\", \"parameters\": {\"a\": 2}}",
        "",
        &[("add", "{\"a\": 1}"), ("add", "{\"a\": 2}")],
    ),
    ("\n\n{\"type\": \"function\", \"name\": \"add\", \"parameters\": {}}; bye", "; bye", &[("add", "{}")]),
    ("Sure: <|python_tag|>{\"name\": \"x\", \"arguments\": {}}", "Sure:", &[("x", "{}")]),
    ("{\"name\": \"Ada\", \"parameters\": {}} is one", "{\"name\": \"Ada\", \"parameters\": {}} is one", &[]),
    ("{\"name\": \"add\"}", "{\"name\": \"add\"}", &[]),
    (" {\"a\": 1} ", " {\"a\": 1} ", &[]),
    ("a {\"name\": \"add\", \"parameters\": {}}", "a {\"name\": \"add\", \"parameters\": {}}", &[]),
    ("<|python_tag|>brave_search.call(query=\"a\")", "<|python_tag|>brave_search.call(query=\"a\")", &[]),
];

const MISTRAL: &[Answer] = &[
    (
        "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"[Paris]\"}}, {\"name\": \"add\", \"arguments\": {}}]",
        "",
        &[("get_weather", "{\"city\": \"[Paris]\"}"), ("add", "{}")],
    ),
    (
        "Hm.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{\"a\": 1}",
        "Hm.",
        &[("get_weather", "{\"city\": \"Paris\"}"), ("add", "{\"a\": 1}")],
    ),
    ("[TOOL_CALLS]add{\"a\": 1}", "", &[("add", "{\"a\": 1}")]),
    (
        "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}, \"id\": \"abcdefghi\"}] ok",
        "] ok",
        &[("add", "{}")],
    ),
    ("[TOOL_CALLS] add [1]", "[TOOL_CALLS] add [1]", &[]),
    ("[TOOL_", "[TOOL_", &[]),
];

const ALL: [(ToolFormat, &[Answer]); 3] =
    [(ToolFormat::Hermes, HERMES), (ToolFormat::Llama3Json, LLAMA), (ToolFormat::Mistral, MISTRAL)];

#[test]
fn calls_are_found() {
    for (format, table) in ALL {
        for (text, content, calls) in table {
            let calls: Vec<(String, String)> =
                calls.iter().map(|(name, arguments)| ((*name).into(), (*arguments).into())).collect();
            assert_eq!(parse(parser(format), &[text]), ((*content).to_owned(), calls), "{text}");
        }
    }
}

#[test]
fn every_cut_of_an_answer_gives_the_same_calls() {
    for (format, table) in ALL {
        for (text, ..) in table {
            let whole = parse(parser(format), &[text]);
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = characters.iter().map(|c| &**c).collect();
            assert_eq!(parse(parser(format), &pieces), whole, "{text}");
            for (cut, _) in text.char_indices() {
                let (a, b) = text.split_at(cut);
                assert_eq!(parse(parser(format), &[a, b]), whole, "{a} | {b}");
            }
        }
    }
}

#[test]
fn arguments_arrive_with_the_text() {
    let mut parser = parser(ToolFormat::Hermes);
    assert_eq!(parser.push("<tool_call>{\"name\": \"add\","), []);
    assert_eq!(
        parser.push(" \"arguments\": {\"a\""),
        [ToolDelta::Call("add".into()), ToolDelta::Arguments("{\"a\"".into())]
    );
    assert_eq!(parser.push(": 1"), [ToolDelta::Arguments(": 1".into())]);
    assert_eq!(parser.push("}}"), [ToolDelta::Arguments("}".into())]);
    assert_eq!(parser.push("</tool_call>"), []);
}

#[test]
fn one_call_may_be_all_that_counts() {
    let text = "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>";
    let one = ToolParser::new(ToolFormat::Hermes, Arc::default(), true, false);
    let expect = (String::new(), vec![("add".to_owned(), "{\"a\": 1}".to_owned())]);
    assert_eq!(parse(one, &[&text.repeat(3)]), expect);
}

#[test]
fn formats_are_those_of_the_templates() {
    let of = ToolFormat::of_template;
    assert_eq!(of("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
    assert_eq!(of("{% if tools %}<tool_call><function={% endif %}"), None);
    assert_eq!(of("{% if tools %}[TOOL_CALLS]{% endif %}"), Some(ToolFormat::Mistral));
    assert_eq!(of("{% if tools %}<|python_tag|>{% endif %}"), Some(ToolFormat::Llama3Json));
    assert_eq!(of("<tool_call>"), None);
    assert_eq!(of("{{ messages }}"), None);
}

proptest! {
    /// Any text from pieces of calls, cut anywhere, has the same parts as the whole.
    #[test]
    fn cuts_do_not_matter(
        format in 0usize..3,
        pieces in proptest::collection::vec(
            "(<tool_call>|</tool_call>|```|json|<\\|python_tag\\|>|\\[TOOL_CALLS\\]|\\[ARGS\\]|\\[|\\]|\\{|\\}|\"|\\\\|,|:|;| |\n|<|add|é|1|\
             \"name\": \"add\"|\"arguments\": \\{|\"parameters\": \\{\"a\": 1\\}\\}|\\{\"name\": \"add\", \"arguments\": \\{\"b\": \"c\"\\}\\})",
            0..24,
        ),
        cuts in proptest::collection::vec(0usize..8, 60),
    ) {
        let format = ALL[format].0;
        let text = pieces.concat();
        let whole = parse(parser(format), &[&text]);
        let (mut cut_up, mut rest) = (Vec::new(), &*text);
        for cut in cuts {
            let mut cut = cut.min(rest.len());
            while !rest.is_char_boundary(cut) {
                cut += 1;
            }
            let (piece, after) = rest.split_at(cut);
            cut_up.push(piece);
            rest = after;
        }
        cut_up.push(rest);
        prop_assert_eq!(parse(parser(format), &cut_up), whole);
    }
}

#[test]
fn an_answer_can_end_inside_arguments() {
    let check = |format, only_one, text: &str, is_cut| {
        let mut parser = ToolParser::new(format, NAMES.map(str::to_owned).into(), only_one, true);
        parser.push(text);
        parser.finish();
        assert_eq!(parser.is_cut(), is_cut, "{text}");
    };
    let call = "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": [1]}}</tool_call>";
    for end in 0..call.len() {
        let (arguments, complete) = (call.find("{\"a\"").unwrap() + 1, call.find("]}").unwrap() + 2);
        check(ToolFormat::Hermes, false, &call[..end], (arguments..complete).contains(&end));
        check(
            ToolFormat::Hermes,
            false,
            &format!("{call}{}", &call[..end]),
            (arguments..complete).contains(&end),
        );
        check(ToolFormat::Hermes, true, &format!("{call}{}", &call[..end]), false);
    }
    check(ToolFormat::Mistral, false, "[TOOL_CALLS]add[ARGS]{\"a\": 1", true);
    check(ToolFormat::Mistral, false, "[TOOL_CALLS]add[ARGS]{\"a\": 1}", false);
    check(ToolFormat::Llama3Json, false, "{\"name\": \"add\", \"parameters\": {\"a\": 1", true);
    check(ToolFormat::Llama3Json, false, "{\"name\": \"other\", \"parameters\": {\"a\": 1", false);
    // Arguments that stop being JSON are not complete either, also if a call follows.
    let broken = "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 5, // comment\n}}</tool_call>";
    check(ToolFormat::Hermes, false, broken, true);
    check(ToolFormat::Hermes, false, &format!("{broken}{call}"), true);
    check(ToolFormat::Hermes, true, &format!("{call}{broken}"), false);
    check(ToolFormat::Mistral, false, "[TOOL_CALLS]add[ARGS]{\"a\": 1 # comment\n}", true);
}
