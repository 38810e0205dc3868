//! The files of a repository that a process needs. Pure: lists of paths in, lists of paths out.

use serde_json::{Map, Value};

use super::name::{is_gguf, is_relative};

/// Which parts of a model a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelParts {
    /// Weights, configuration, tokenizer and chat template.
    All,
    /// Everything but the weights: a proxy, random weights, or the tokenizer of another model.
    WithoutWeights,
}

/// The file of a tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The small files that the engine and the frontend read from a folder. They need not exist.
const TEXTS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
];

/// The list of the files that have a model's weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The file of a model whose weights are in one file.
const SINGLE: &str = "model.safetensors";

/// The files that a process needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Small files.
    pub(super) texts: Vec<String>,
    /// Files with weights.
    pub(super) weights: Vec<String>,
    /// Whether [`INDEX`], which is among the small files, names more files with weights.
    pub(super) has_index: bool,
    /// The model itself, if it is one GGUF file.
    pub(super) gguf: Option<String>,
}

/// Selects from the files of a repository.
///
/// # Errors
/// The rest of a sentence that begins with the repository.
pub(super) fn select(names: &[String], file: Option<&str>, parts: ModelParts) -> Result<Selection, String> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if let Some(file) = file {
        if !has(file) {
            return Err(format!("has no file {file}; {}", offer(names)));
        }
        return gguf(file);
    }
    let texts: Vec<String> = TEXTS.into_iter().filter(|text| has(text)).map(str::to_owned).collect();
    let is_folder = has("config.json") && (has(INDEX) || has(SINGLE) || parts == ModelParts::WithoutWeights);
    if is_folder {
        let has_index = parts == ModelParts::All && has(INDEX);
        let single = parts == ModelParts::All && !has_index;
        return Ok(Selection {
            texts: texts.into_iter().chain(has_index.then(|| INDEX.to_owned())).collect(),
            weights: single.then(|| SINGLE.to_owned()).into_iter().collect(),
            has_index,
            gguf: None,
        });
    }
    match ggufs(names)[..] {
        [only] => gguf(only),
        [] if parts == ModelParts::WithoutWeights && has(TOKENIZER) => {
            Ok(Selection { texts, ..Selection::default() })
        }
        [] if has("config.json") => {
            Err(format!("has no {SINGLE} and no {INDEX}; use a model with safetensors or a GGUF file"))
        }
        [] => Err("has neither config.json nor a GGUF file; use a model in one of these formats".to_owned()),
        _ => Err(format!("has several GGUF files; {}", offer(names))),
    }
}

fn gguf(file: &str) -> Result<Selection, String> {
    if file.contains("-of-0") && !file.contains("-00001-of-00001.") {
        return Err(format!("has {file} as one part of several; use a GGUF file that is not split"));
    }
    let weights = vec![file.to_owned()];
    Ok(Selection { weights, gguf: Some(file.to_owned()), ..Selection::default() })
}

fn ggufs(names: &[String]) -> Vec<&str> {
    let mut found: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_gguf(name)).collect();
    found.sort_unstable();
    found
}

/// Advice with the GGUF files of a repository.
fn offer(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let found = ggufs(names);
    match found.len() {
        0 => "it has no GGUF file, so name it without a file".to_owned(),
        count => {
            let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
            format!("write one of them behind a colon: {}{more}", found[..count.min(SHOWN)].join(", "))
        }
    }
}

/// The files with weights that an index names.
///
/// # Errors
/// The rest of a sentence that begins with the repository.
pub(super) fn shards(index: &[u8], names: &[String]) -> Result<Vec<String>, String> {
    let index: Value =
        serde_json::from_slice(index).map_err(|error| format!("has an {INDEX} that is no JSON: {error}"))?;
    let places: Option<&Map<String, Value>> = index["weight_map"].as_object();
    let places = places.ok_or_else(|| format!("has an {INDEX} without a weight_map"))?;
    let mut files: Vec<String> =
        places.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
    files.sort_unstable();
    files.dedup();
    let unknown = files.iter().find(|file| !is_relative(file) || !names.contains(file));
    match unknown {
        Some(file) => Err(format!("has an {INDEX} that names {file:?}, which is not in the repository")),
        None if files.is_empty() => Err(format!("has an {INDEX} that names no file")),
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// What a repository of safetensors has beside the files that are needed.
    const OTHERS: [&str; 9] = [
        ".gitattributes",
        "README.md",
        "LICENSE",
        "original/consolidated.00.pth",
        "original/params.json",
        "pytorch_model.bin",
        "tokenizer.model",
        "onnx/model.onnx",
        "special_tokens_map.json",
    ];

    #[test]
    fn only_files_that_are_used_are_selected() {
        let names =
            list(&[&OTHERS[..], &["config.json", "tokenizer.json", "chat_template.jinja", SINGLE]].concat());
        let all = select(&names, None, ModelParts::All).unwrap();
        assert_eq!(all.texts, ["config.json", "tokenizer.json", "chat_template.jinja"]);
        assert_eq!((all.weights, all.has_index, all.gguf), (list(&[SINGLE]), false, None));
        let texts = select(&names, None, ModelParts::WithoutWeights).unwrap();
        assert_eq!((texts.texts, texts.weights), (all.texts, vec![]));
    }

    /// The engine reads the index if there is one.
    #[test]
    fn an_index_comes_before_a_single_file() {
        let names = list(&["config.json", INDEX, SINGLE, "model-00001-of-00002.safetensors"]);
        let all = select(&names, None, ModelParts::All).unwrap();
        assert_eq!((all.texts, all.weights, all.has_index), (list(&["config.json", INDEX]), vec![], true));
        let texts = select(&names, None, ModelParts::WithoutWeights).unwrap();
        assert_eq!((texts.texts, texts.has_index), (list(&["config.json"]), false));
    }

    #[test]
    fn gguf_files_are_named() {
        let one = list(&["README.md", "config.json", "m.Q4_0.gguf"]);
        let several = list(&["a.gguf", "b.gguf", "q/c.GGUF", "README.md"]);
        let found =
            |names: &[String], file| select(names, file, ModelParts::All).map(|found| found.gguf.unwrap());
        assert_eq!(found(&one, None).unwrap(), "m.Q4_0.gguf");
        assert_eq!(found(&several, Some("q/c.GGUF")).unwrap(), "q/c.GGUF");
        let error = found(&several, None).unwrap_err();
        assert!(
            error.ends_with("several GGUF files; write one of them behind a colon: a.gguf, b.gguf, q/c.GGUF"),
            "{error}"
        );
        assert!(found(&several, Some("d.gguf")).unwrap_err().contains("no file d.gguf; write one of them"));
        let split = list(&["m-00001-of-00002.gguf"]);
        assert!(found(&split, None).unwrap_err().contains("not split"));
        let many: Vec<String> = (0..20).map(|n| format!("{n:02}.gguf")).collect();
        assert!(found(&many, None).unwrap_err().ends_with("06.gguf, 07.gguf and 12 more"));
    }

    /// A repository with safetensors and GGUF files is a folder.
    #[test]
    fn safetensors_come_before_gguf_files() {
        let both = list(&["config.json", SINGLE, "m.gguf"]);
        assert_eq!(select(&both, None, ModelParts::All).unwrap().weights, [SINGLE]);
        assert_eq!(select(&both, Some("m.gguf"), ModelParts::All).unwrap().weights, ["m.gguf"]);
    }

    #[test]
    fn repositories_without_a_model_are_refused() {
        for (names, words) in [
            (&["config.json", "pytorch_model.bin"][..], "has no model.safetensors"),
            (&["README.md"], "neither config.json nor a GGUF file"),
            (&["config.json", "README.md"], "has no model.safetensors"),
        ] {
            let error = select(&list(names), None, ModelParts::All).unwrap_err();
            assert!(error.contains(words), "{names:?}: {error}");
        }
        assert!(
            select(&list(&["config.json"]), Some("m.gguf"), ModelParts::All)
                .unwrap_err()
                .contains("without a file")
        );
        // A tokenizer alone is enough for the key `tokenizer`.
        let tokenizer =
            select(&list(&["tokenizer.json", "README.md"]), None, ModelParts::WithoutWeights).unwrap();
        assert_eq!(tokenizer.texts, ["tokenizer.json"]);
    }

    #[test]
    fn an_index_names_files_of_the_repository() {
        let names = list(&["a.safetensors", "b.safetensors", "c.safetensors"]);
        let index = br#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        assert_eq!(shards(index, &names).unwrap(), ["a.safetensors", "b.safetensors"]);
        for (index, words) in [
            (&b"{"[..], "no JSON"),
            (b"{}", "without a weight_map"),
            (br#"{"weight_map": {}}"#, "names no file"),
            (br#"{"weight_map": {"x": "../a"}}"#, "not in the repository"),
            (br#"{"weight_map": {"x": "d.safetensors"}}"#, "d.safetensors"),
        ] {
            let error = shards(index, &names).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
