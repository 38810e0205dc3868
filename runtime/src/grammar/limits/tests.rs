use serde_json::json;

use super::*;

fn refused(schema: &Value) -> String {
    Shapes::default().check(schema).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn unsupported_keywords_are_named_with_their_place() {
    for (schema, words) in [
        (json!({"not": {}}), "the keyword not at # is not supported"),
        (json!({"anyOf": [{}, {"if": {}}]}), "the keyword if at #/anyOf/1 is"),
        (
            json!({"properties": {"a/b": {"items": {"uniqueItems": true}}}}),
            "uniqueItems at #/properties/a/b/items is",
        ),
        (json!({"items": [{}, {"contains": {}}]}), "contains at #/items/1 is"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"prefixItems": [{"format": "regex"}]}}}),
            "the format \"regex\" at #/$defs/a/prefixItems/0 is",
        ),
        (
            json!({"additionalProperties": {"patternProperties": {"^a": {"dependencies": {}}}}}),
            "#/additionalProperties/patternProperties/^a",
        ),
        (json!({"properties": {("a".repeat(50)): {"not": {}}}}), "aaa… is"),
    ] {
        assert!(refused(&schema).contains(words), "{schema}: {}", refused(&schema));
    }
}

#[test]
fn multiples_are_small() {
    for (steps, fits) in [
        ("1", true),
        ("0.01", true),
        ("0.125", true),
        ("10000", true),
        ("10001", false),
        ("0.30000000000000004", false),
        ("1e300", false),
        ("-1", false),
        // They may apply to the same number.
        ("0.01 0.5 100", true),
        ("9973 9973", true),
        ("9973 97", false),
        ("0.0001 100", false),
    ] {
        let schemas: Vec<Value> = steps
            .split(' ')
            .map(|step| serde_json::from_str(&format!("{{\"multipleOf\": {step}}}")).unwrap())
            .collect();
        let error = refused(&json!({"anyOf": schemas}));
        assert_eq!(error.is_empty(), fits, "{steps}: {error}");
    }
}

#[test]
fn words_that_are_not_keywords_are_ignored() {
    for schema in [
        json!({"properties": {"not": {"type": "string"}}, "required": ["not"]}),
        json!({"const": {"not": 1}, "enum": [{"if": {"format": "x"}}], "default": {"contains": 1}}),
        json!({"$defs": {"unused": {"not": {}}}}),
        json!({"nullable": true, "discriminator": {"if": 1}}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": "#", "properties": {"a": {"$ref": "#/"}, "b": {"$ref": "#/properties/b"}}}),
        json!(true),
        json!([{"not": {}}]),
    ] {
        assert_eq!(refused(&schema), "", "{schema}");
    }
}

fn object(properties: usize) -> Value {
    let properties: Map<String, Value> = (0..properties).map(|n| (format!("p{n}"), json!(true))).collect();
    json!({"properties": properties})
}

/// Definitions `d0` to `d<count>`, of which each contains a reference to the next one at this depth.
fn chain(count: usize, depth: usize) -> Value {
    let nested = |n: usize| {
        (1..depth).fold(json!({"$ref": format!("#/$defs/d{}", n + 1)}), |inner, _| json!({"items": inner}))
    };
    let definitions: Map<String, Value> = (0..count).map(|n| (format!("d{n}"), nested(n))).collect();
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

#[test]
fn shapes_are_bounded() {
    let most = PROPERTIES_MAX;
    assert_eq!(refused(&object(most)), "");
    assert!(refused(&object(most + 1)).contains("an object may have 2000"));
    assert!(refused(&json!({"allOf": vec![object(most / 2); 5]})).contains("too many properties"));
    assert_eq!(refused(&chain(LEVELS_MAX / 4 - 1, 4)), "");
    assert!(refused(&chain(LEVELS_MAX / 4, 4)).contains("nested schemas and references"));
    // The library finds these names as they are.
    for name in ["d~1", "d%", "d~0"] {
        let renamed = chain(LEVELS_MAX / 4, 4).to_string().replace("/d", &format!("/{name}"));
        let renamed = renamed.replace("\"d", &format!("\"{name}"));
        let schema = serde_json::from_str(&renamed).unwrap();
        assert!(refused(&schema).contains("nested schemas and references"), "{name}");
    }
    let items = json!({"items": {"$ref": "#/allOf/+01"}, "allOf": [1, {"not": {}}]});
    assert!(refused(&items).contains("the keyword not at #/allOf/"), "{}", refused(&items));
    let patterns: Map<String, Value> = (0..=PATTERNS_MAX).map(|n| (format!("^{n}"), json!(true))).collect();
    assert!(refused(&json!({"patternProperties": patterns})).contains("patternProperties"));
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let instances: Map<String, Value> =
        (0..30).map(|n| (format!("p{n}"), json!({"$ref": format!("#/$defs/d{n}")}))).collect();
    let definitions: Map<String, Value> =
        (0..30).map(|n| (format!("d{n}"), json!({"const": nested}))).collect();
    assert!(refused(&json!({"properties": instances, "$defs": definitions})).contains("nested schemas"));
}

#[test]
fn long_keys_do_not_multiply_the_memory() {
    let inner: Map<String, Value> = (0..1000).map(|n| (format!("p{n}"), json!({"items": {}}))).collect();
    let schema = (0..50)
        .fold(json!({"properties": inner}), |inner, _| json!({"properties": {("k".repeat(4000)): inner}}));
    assert_eq!(refused(&schema), "");
}

#[test]
fn levels_of_lark_are_bounded() {
    assert_eq!(check_levels(LARK_LEVELS_MAX), Ok(()));
    let refused = check_levels(LARK_LEVELS_MAX + 1).unwrap_err().to_string();
    assert!(refused.contains("it may have 1000"), "{refused}");
}
