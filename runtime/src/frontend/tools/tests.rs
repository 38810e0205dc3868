use serde_json::json;

use super::*;

fn read(body: &Value) -> Result<Option<ToolAsk>, ApiError> {
    ToolAsk::read(&Fields::parse(body.to_string().as_bytes()).unwrap(), ToolShape::Nested)
}

fn refused(body: &Value) -> String {
    let error = read(body).unwrap_err();
    format!("{}: {}", error.param.unwrap_or_default(), error.message)
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
}

#[test]
fn tools_are_shown_as_the_client_wrote_them() {
    let text = r#"{"function":{"name":"f","parameters":{"z":1,"a":{"y":2,"b":3}}},"type":"function"}"#;
    let fields = format!(r#"{{"tools": [{text}]}}"#);
    let ask = ToolAsk::read(&Fields::parse(fields.as_bytes()).unwrap(), ToolShape::Nested).unwrap().unwrap();
    assert_eq!(ask.shown[0].to_string(), text);
}

#[test]
fn the_choice_decides_which_calls_count() {
    let rule = |choice: Value, format| {
        let ask = read(&json!({"tools": [tool("f"), tool("g")], "tool_choice": choice})).unwrap().unwrap();
        let rule = ask.rule(format, false);
        let grammar = rule.as_ref().is_some_and(|rule| ask.grammar(rule, false).is_some());
        (rule.map(|rule| (rule.format, rule.only_one, rule.is_named)), grammar)
    };
    let llama = Some(ToolFormat::Llama3Json);
    assert_eq!(rule(Value::Null, llama), (Some((ToolFormat::Llama3Json, false, false)), false));
    assert_eq!(rule(json!("auto"), None), (None, false));
    assert_eq!(rule(json!("none"), llama), (None, false));
    assert_eq!(rule(json!("required"), None), (Some((ToolFormat::Hermes, false, false)), true));
    let named = json!({"type": "function", "function": {"name": "g"}});
    assert_eq!(rule(named, llama), (Some((ToolFormat::Llama3Json, true, true)), true));

    let mut strict = tool("f");
    strict["function"]["strict"] = json!(true);
    let body = json!({"tools": [strict], "parallel_tool_calls": false});
    let ask = read(&body).unwrap().unwrap();
    let rule = ask.rule(llama, false).unwrap();
    assert!(rule.only_one && ask.grammar(&rule, false).is_some_and(|grammar| !grammar.is_forced));
}

#[test]
fn a_request_may_have_no_tools() {
    for body in
        [json!({}), json!({"tools": []}), json!({"tool_choice": "auto"}), json!({"tool_choice": "none"})]
    {
        assert!(read(&body).unwrap().is_none(), "{body}");
    }
}

#[test]
fn wrong_tools_name_their_field() {
    let check = |tools: Value, expect: &str| {
        let found = refused(&json!({"tools": tools}));
        assert!(found.starts_with(expect), "{found}");
    };
    let with = |field: &str, value: Value| {
        let mut tool = tool("f");
        tool["function"][field] = value;
        json!([tool])
    };
    check(json!({}), "tools: tools must be a list of tools, not {}");
    check(json!(["f"]), "tools[0]: tools[0] must be an object");
    check(json!([{"type": "custom"}]), "tools[0].type: tools[0].type must be \"function\", not \"custom\"");
    check(json!([{"type": "function"}]), "tools[0].function: tools[0].function must be an object");
    check(
        with("name", json!("a b")),
        "tools[0].function.name: tools[0].function.name must be 1 to 64 letters",
    );
    check(with("name", json!("x".repeat(65))), "tools[0].function.name: ");
    check(with("name", Value::Null), "tools[0].function.name: ");
    check(
        with("parameters", json!([])),
        "tools[0].function.parameters: tools[0].function.parameters must be an object",
    );
    check(with("parameters", json!({"type": "string"})), "tools[0].function.parameters: ");
    check(
        with("strict", json!(1)),
        "tools[0].function.strict: tools[0].function.strict must be true or false",
    );
    check(with("description", json!(1)), "tools[0].function.description: ");
    check(
        json!([tool("f"), tool("f")]),
        "tools[1].function.name: tools[1].function.name is \"f\", like that",
    );
    check(json!(vec![tool("f"); 129]), "tools: tools has 129 tools; at most 128");
}

#[test]
fn wrong_choices_are_refused() {
    let check = |choice: Value, expect: &str| {
        let found = refused(&json!({"tools": [tool("f")], "tool_choice": choice}));
        assert!(found.starts_with(&format!("tool_choice: {expect}")), "{found}");
    };
    check(
        json!("any"),
        "tool_choice must be none, auto, required, or an object that names a function, not \"any\"",
    );
    check(json!({"type": "function"}), "tool_choice must be none, auto");
    check(
        json!({"type": "function", "function": {"name": "g"}}),
        "tool_choice names the function \"g\", which is not in",
    );
    check(json!({"type": "allowed_tools"}), "tool_choice.type must be \"function\", not \"allowed_tools\"");
    check(
        json!({"type": "function", "function": {"name": "x".repeat(65)}}),
        "tool_choice must be none, auto",
    );
    let found = refused(&json!({"tool_choice": "required"}));
    assert!(found.starts_with("tool_choice: tool_choice is required, but tools has no tool"), "{found}");
    let found = refused(&json!({"tools": [tool("f")], "parallel_tool_calls": 1}));
    assert!(found.starts_with("parallel_tool_calls: "), "{found}");
}
