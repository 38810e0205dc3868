//! Grammars for tool calls, in llguidance's dialect of Lark: the model writes calls in its own format, with arguments that match their
//! schemas.

use std::fmt::Write as _;

use actors::grammar::GrammarSource;
use serde_json::{Map, Value, json};

use super::super::api_error::ApiError;
use super::super::lark::{self, Mark, TEXT, body, quoted, thought};
use super::super::reasoning::{ReasoningFormat, ReasoningStart};
use super::super::tokenizer::Tokenizer;
use super::super::tool_parser::ToolFormat;

/// One tool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tool {
    pub(super) name: String,
    /// The JSON Schema of the arguments.
    pub(super) parameters: Map<String, Value>,
    /// The arguments have to match the schema even if the answer may do without a call.
    pub(super) strict: bool,
}

/// The calls that an answer may or must have.
pub(in super::super) struct CallGrammar<'a> {
    pub(super) format: ToolFormat,
    /// At least one.
    pub(super) tools: Vec<&'a Tool>,
    /// The answer is a call. If not, it is text that may end with calls.
    pub(super) is_forced: bool,
    /// The answer has at most one call.
    pub(super) only_one: bool,
}

impl CallGrammar<'_> {
    /// The source of the grammar. `reasoning` is where the answer begins, if the model writes reasoning before. `other` is the grammar of
    /// an answer that is no call. `None` if it cannot be part of a larger one.
    ///
    /// # Errors
    /// 400 if the schemas are too large.
    pub(in super::super) fn source(
        &self,
        reasoning: Option<ReasoningStart>,
        other: Option<&GrammarSource>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<GrammarSource>, ApiError> {
        let opener = Mark::new(self.format.opener(), tokenizer);
        let mut lark = String::new();
        let other = other.filter(|_| !self.is_forced);
        // Text before optional calls may be reasoning too, unless its marks are special tokens.
        let closer = tokenizer.special_token(ReasoningFormat::MARKERS[1]);
        let is_text = !self.is_forced && other.is_none() && closer.is_none();
        let thought = thought(reasoning.filter(|_| !is_text), tokenizer, &mut lark);
        let call = match self.format {
            ToolFormat::Llama3Json => "calls".to_owned(),
            _ => format!("{} calls", opener.terminal()),
        };
        let answer = match (self.is_forced, self.format, opener.token) {
            (true, ..) => call,
            _ if other.is_some() => {
                let Some(body) = other.and_then(body) else { return Ok(None) };
                let _ = writeln!(lark, "other: {body}");
                format!("(other | {call})")
            }
            // Text that begins with a brace would be a call.
            (false, ToolFormat::Llama3Json, _) => {
                lark += "other: /[^{\\s](.|\\n)*/\n";
                "(calls | other?)".to_owned()
            }
            (false, _, Some(_)) => {
                let _ = writeln!(lark, "text: {TEXT}");
                format!("text ({call})?")
            }
            (false, _, None) => {
                lark += &opener.until("opened");
                let pattern = opener.pattern();
                let _ = writeln!(lark, "rest: REST\nREST: {TEXT} & ~/(.|\\n)*{pattern}(.|\\n)*/");
                "(rest | opened calls)".to_owned()
            }
        };
        let is_named = self.format == ToolFormat::Mistral && tokenizer.special_token("[ARGS]").is_some();
        let names: Vec<String> = (0..self.tools.len()).map(|n| format!("call_{n}")).collect();
        let _ = writeln!(
            lark,
            "calls: {}\ncall: {}",
            self.calls(is_named, &opener, tokenizer),
            names.join(" | ")
        );
        for (n, tool) in self.tools.iter().enumerate() {
            let (before, after) = if is_named {
                let arguments = Mark::new("[ARGS]", tokenizer);
                (format!("{} {}", quoted(&tool.name), arguments.terminal()), String::new())
            } else {
                let key = if self.format == ToolFormat::Llama3Json { "parameters" } else { "arguments" };
                let before = format!("{{\"name\": \"{}\", \"{key}\": ", tool.name);
                (quoted(&before), quoted("}"))
            };
            let arguments = lark::json(schema(&tool.parameters, self.is_forced || tool.strict));
            let _ = writeln!(lark, "call_{n}: {before} arguments_{n} {after}\narguments_{n}: {arguments}");
        }
        let lark = format!("start: {thought}{answer}\n{lark}");
        if lark.len() > GrammarSource::BYTES_MAX {
            let message = format!(
                "tools has schemas of {} bytes in all; at most {} are allowed if calls have to match them",
                lark.len(),
                GrammarSource::BYTES_MAX
            );
            return Err(ApiError::field("tools", message));
        }
        Ok(Some(GrammarSource::Lark(lark)))
    }

    /// The calls after the first opener.
    fn calls(&self, is_named: bool, opener: &Mark, tokenizer: &Tokenizer) -> String {
        let several = |more: &str| if self.only_one { String::new() } else { format!(" ({more})*") };
        let opener = opener.terminal();
        match self.format {
            ToolFormat::Hermes => {
                let closer = Mark::new("</tool_call>", tokenizer).terminal();
                let one = format!("\"\\n\" call \"\\n\" {closer}");
                format!("{one}{}", several(&format!("\"\\n\" {opener} {one}")))
            }
            ToolFormat::Llama3Json => format!("call{}", several("\"; \" call")),
            ToolFormat::Mistral if is_named => format!("call{}", several(&format!("{opener} call"))),
            ToolFormat::Mistral => format!("\"[\" call{} \"]\"", several("\", \" call")),
        }
    }
}

/// The schema of the arguments of a call. An object that names no properties has none, unless the schema describes them in another way. The
/// compiler of grammars closes objects that name some.
fn schema(parameters: &Map<String, Value>, is_enforced: bool) -> Map<String, Value> {
    const DESCRIBING: [&str; 6] =
        ["$ref", "additionalProperties", "allOf", "anyOf", "oneOf", "patternProperties"];
    let mut schema = if is_enforced { parameters.clone() } else { Map::new() };
    schema.entry("type").or_insert(json!("object"));
    if is_enforced && !DESCRIBING.iter().any(|key| schema.contains_key(*key)) {
        schema.entry("properties").or_insert(json!({}));
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actors::grammar::GrammarCompiler;

    use super::super::super::model_text::ModelText;
    use super::super::super::model_text::testing::{EOS, bytes_model};
    use super::super::super::tokenizer::Bos;
    use super::*;
    use crate::grammar::ModelCompiler;

    /// A vocabulary of bytes and these special tokens, without merges.
    fn vocabulary(special: &[&str]) -> Tokenizer {
        let mut text = bytes_model();
        text.tokens.truncate(EOS as usize + 1);
        text.tokens.extend(special.iter().map(|text| (*text).to_owned()));
        text.token_types.truncate(EOS as usize + 1);
        text.token_types.resize(text.tokens.len(), 3);
        Tokenizer::new(&ModelText { merges: Vec::new(), ..text }).unwrap()
    }

    fn tool(name: &str, strict: bool, parameters: Value) -> Tool {
        Tool { name: name.to_owned(), parameters: parameters.as_object().unwrap().clone(), strict }
    }

    /// Checks which answers a grammar accepts: as a whole, or not.
    fn check(
        shape: (ToolFormat, bool, bool),
        reasoning: Option<ReasoningStart>,
        special: &[&str],
        answers: &[(&str, bool)],
    ) {
        check_with(shape, reasoning, None, special, answers);
    }

    fn check_with(
        (format, is_forced, only_one): (ToolFormat, bool, bool),
        reasoning: Option<ReasoningStart>,
        other: Option<&GrammarSource>,
        special: &[&str],
        answers: &[(&str, bool)],
    ) {
        let schema = json!({"type": "object", "properties": {"z": {"type": "integer"}, "a": {"$ref": "#/$defs/d"}},
            "required": ["z"], "$defs": {"d": {"enum": ["x", "y\n"]}}});
        let tools = [tool("f", true, schema), tool("g", false, json!({}))];
        let tokenizer = Arc::new(vocabulary(special));
        let grammar = CallGrammar { format, tools: tools.iter().collect(), is_forced, only_one };
        let source = grammar.source(reasoning, other, &tokenizer).unwrap().unwrap();
        accepts(&source, &tokenizer, answers);
    }

    /// Checks which answers a source accepts: as a whole, or not.
    fn accepts(source: &GrammarSource, tokenizer: &Arc<Tokenizer>, answers: &[(&str, bool)]) {
        let compiler = ModelCompiler::new(Arc::clone(tokenizer), tokenizer.vocabulary(), &[EOS]);
        let compiled = compiler.compile(source);
        let compiled = compiled.unwrap_or_else(|error| panic!("{error}\n{}", source.text()));
        for (text, fits) in answers {
            let mut matcher = compiled.grammar().matcher().unwrap();
            let tokens = tokenizer.encode(text, Bos::Omit).unwrap().into_iter().chain([EOS]);
            let is_whole = tokens.into_iter().all(|token| {
                let mask = matcher.mask().unwrap();
                mask[token as usize / 32] & (1 << (token % 32)) != 0 && matcher.consume(token).is_ok()
            });
            assert_eq!(is_whole, *fits, "{text:?} by\n{}", source.text());
        }
    }

    const HERMES: &[&str] = &["<tool_call>", "</tool_call>"];

    #[test]
    fn forced_calls_have_the_models_format() {
        let f = r#"{"name": "f", "arguments": {"z": 1, "a": "x"}}"#;
        let g = r#"{"name": "g", "arguments": {}}"#;
        let call = |body: &str| format!("<tool_call>\n{body}\n</tool_call>");
        let (one, two) = (call(f), format!("{}\n{}", call(f), call(g)));
        let wrong = call(r#"{"name": "f", "arguments": {"a": "x"}}"#);
        let unknown = call(r#"{"name": "h", "arguments": {}}"#);
        let extra = call(r#"{"name": "g", "arguments": {"b": 1}}"#);
        for special in [HERMES, &[]] {
            let answers = [
                (&*one, true),
                (&two, true),
                (&wrong, false),
                (&unknown, false),
                (&extra, false),
                ("a", false),
            ];
            check((ToolFormat::Hermes, true, false), None, special, &answers);
            check((ToolFormat::Hermes, true, true), None, special, &[(&one, true), (&two, false)]);
        }
        let llama = f.replace("arguments", "parameters");
        let two = format!("{llama}; {llama}");
        check((ToolFormat::Llama3Json, true, false), None, &[], &[(&llama, true), (&two, true), (f, false)]);
        check((ToolFormat::Llama3Json, true, true), None, &[], &[(&llama, true), (&two, false)]);
        let (one, two) = (format!("[TOOL_CALLS][{f}]"), format!("[TOOL_CALLS][{f}, {g}]"));
        check((ToolFormat::Mistral, true, false), None, &["[TOOL_CALLS]"], &[(&one, true), (&two, true)]);
        check((ToolFormat::Mistral, true, true), None, &[], &[(&one, true), (&two, false)]);
        let named = "[TOOL_CALLS]g[ARGS]{}";
        let both = &["[TOOL_CALLS]", "[ARGS]"];
        check(
            (ToolFormat::Mistral, true, false),
            None,
            both,
            &[(named, true), (&named.repeat(2), true), (&one, false)],
        );
    }

    #[test]
    fn strict_tools_leave_the_choice_of_text() {
        let f = r#"{"name": "f", "arguments": {"z": 1}}"#;
        let call = format!("<tool_call>\n{f}\n</tool_call>");
        let (after, wrong) = (format!("Let me see.\n{call}"), call.replace('1', "\"1\""));
        let any = call.replace(f, r#"{"name": "g", "arguments": {"b": [1]}}"#);
        for special in [HERMES, &[]] {
            let answers = [
                ("Hi <b>.", true),
                ("", true),
                (&*call, true),
                (&after, true),
                (&any, true),
                (&wrong, false),
            ];
            check((ToolFormat::Hermes, false, false), None, special, &answers);
        }
        let llama = f.replace("arguments", "parameters");
        let wrong = llama.replace('1', "\"1\"");
        let answers = [("Hi {", true), ("", true), (&*llama, true), (&wrong, false), ("{}", false)];
        check((ToolFormat::Llama3Json, false, false), None, &[], &answers);
    }

    #[test]
    fn reasoning_comes_before_a_forced_call() {
        let call = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let closed = format!("why?\nso</think>\n\n{call}");
        let whole = format!("<think>\n{closed}");
        let think = [HERMES, &["<think>", "</think>"]].concat();
        for special in [HERMES, &think] {
            let shape = (ToolFormat::Hermes, true, true);
            let inside = [(&*closed, true), (call, false), ("why?", false)];
            check(shape, Some(ReasoningStart::Inside), special, &inside);
            let open = [(&*whole, true), (call, true), (&closed, false)];
            check(shape, Some(ReasoningStart::Open), special, &open);
            check(shape, Some(ReasoningStart::Closed), special, &[(call, true), (&whole, false)]);
            let optional = [(&*closed, true), ("why</think>so", true)];
            check((ToolFormat::Hermes, false, true), Some(ReasoningStart::Inside), special, &optional);
        }
    }

    #[test]
    fn an_answer_may_have_a_grammar_of_its_own_or_be_a_call() {
        let call = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let other = GrammarSource::JsonSchema(r#"{"type": "array", "items": {"enum": ["/"]}}"#.to_owned());
        let regex = GrammarSource::Regex("\\[(\"/\",? ?)*\\]".to_owned());
        let choice = "start: CHOICE\nCHOICE: \"[\\\"/\\\", \\\"/\\\"]\" | \"[]\"\n";
        let choice = GrammarSource::Lark(choice.to_owned());
        for other in [&other, &regex, &choice] {
            for special in [HERMES, &[]] {
                let answers = [("[\"/\", \"/\"]", true), (call, true), ("[1]", false), ("Hi", false)];
                check_with((ToolFormat::Hermes, false, false), None, Some(other), special, &answers);
                let (after, before) = (format!("so</think>{call}"), "so</think>\n\n[]".to_owned());
                let answers = [(&*after, true), (&before, true), ("[]", false), ("so</think>", false)];
                let inside = Some(ReasoningStart::Inside);
                check_with((ToolFormat::Hermes, false, false), inside, Some(other), special, &answers);
            }
        }
        let lark = GrammarSource::Lark("start: text\ntext: \"a\"".to_owned());
        let tokenizer = vocabulary(&[]);
        let tools = [tool("f", true, json!({}))];
        let grammar = |is_forced| CallGrammar {
            format: ToolFormat::Hermes,
            tools: tools.iter().collect(),
            is_forced,
            only_one: true,
        };
        let source = |is_forced| grammar(is_forced).source(None, Some(&lark), &tokenizer).unwrap();
        assert_eq!(source(false), None);
        assert!(source(true).is_some(), "a forced call needs no other grammar");
    }

    #[test]
    fn a_schema_accepts_the_same_json_wherever_it_stands() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items":
            {"properties": {"z": {"type": "integer"}}, "required": ["z"]}}}, "required": ["a"]});
        let good = r#"{"a": [{"z": 1}, {"z": 2}]}"#;
        let wrong = [
            r#"{"a":[{"z":1},{"z":2}]}"#,
            r#"{"a": [ {"z": 1}, {"z": 2}]}"#,
            r#"{"a": [{"z": 1, "y": 2}]}"#,
            r#"{"a": [{"z": 1}], "b": 2}"#,
        ];
        let check = |source: &GrammarSource, special: &[&str], before: &str, after: &str| {
            let answers: Vec<(String, bool)> = std::iter::once((good, true))
                .chain(wrong.map(|text| (text, false)))
                .map(|(text, fits)| (format!("{before}{text}{after}"), fits))
                .collect();
            let answers: Vec<(&str, bool)> = answers.iter().map(|(text, fits)| (&**text, *fits)).collect();
            accepts(source, &Arc::new(vocabulary(special)), &answers);
        };
        let alone = GrammarSource::JsonSchema(schema.to_string());
        check(&alone, &[], "", "");
        for special in [HERMES, &[]] {
            let tokenizer = vocabulary(special);
            let inside = Some(ReasoningStart::Inside);
            let after = lark::after_reasoning(&alone, inside, &tokenizer).unwrap();
            check(&after, special, "so</think>\n", "");
            let tools = [tool("f", false, schema.clone())];
            let grammar = |is_forced| CallGrammar {
                format: ToolFormat::Hermes,
                tools: tools.iter().collect(),
                is_forced,
                only_one: true,
            };
            for (reasoning, before) in [(None, ""), (inside, "so</think>\n")] {
                let beside = grammar(false).source(reasoning, Some(&alone), &tokenizer).unwrap().unwrap();
                check(&beside, special, before, "");
                let forced = grammar(true).source(reasoning, None, &tokenizer).unwrap().unwrap();
                let call = format!("{before}<tool_call>\n{{\"name\": \"f\", \"arguments\": ");
                check(&forced, special, &call, "}\n</tool_call>");
            }
        }
    }

    #[test]
    fn many_tools_with_odd_descriptions_compile() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "description": "b ::= %json {"}}});
        let tools: Vec<Tool> = (0..128).map(|n| tool(&format!("f{n}"), false, schema.clone())).collect();
        let tokenizer = Arc::new(vocabulary(HERMES));
        let tools = tools.iter().collect();
        let grammar = CallGrammar { format: ToolFormat::Hermes, tools, is_forced: true, only_one: false };
        let source = grammar.source(None, None, &tokenizer).unwrap().unwrap();
        let compiler = ModelCompiler::new(Arc::clone(&tokenizer), tokenizer.vocabulary(), &[EOS]);
        compiler.compile(&source).unwrap();

        let large = [tool("f", true, json!({"description": "a".repeat(GrammarSource::BYTES_MAX)}))];
        let grammar = CallGrammar { tools: large.iter().collect(), ..grammar };
        let error = grammar.source(None, None, &tokenizer).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools"), "{}", error.message);
    }
}
