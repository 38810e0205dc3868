//! Hugging Face folders: the same words as transformers, for every shape of a small Llama, in any chunks.

use std::fs;
use std::path::{Path, PathBuf};

use engine::{Chunk, Engine, EngineConfig, PageId, Sample};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// A folder that goes away with this value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Between -1 and 1: what `numbers` of `make_fixtures.py` makes.
fn number(name: &str, index: u64) -> f32 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

fn tensor(salt: &str, name: &str, shape: &[u64], dtype: &str) -> Vec<u8> {
    let name = format!("{salt}/{name}");
    let value = |index| match shape {
        [_] => 1.0 + number(&name, index) * 0.125,
        _ => number(&name, index) * 2f32.powi(1 - shape[1].ilog2() as i32 / 2),
    };
    let store = |value: f32| match dtype {
        "F32" => value.to_le_bytes().to_vec(),
        "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(value).to_le_bytes().to_vec(),
    };
    (0..shape.iter().product()).map(value).flat_map(store).collect()
}

/// Names and shapes, as transformers has them.
fn tensors(config: &Value) -> Vec<(String, Vec<u64>)> {
    let size = |key: &str| config[key].as_u64().unwrap();
    let (hidden, feed, vocabulary) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let (query, key) =
        (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        all.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![query, hidden]),
            ("self_attn.k_proj", vec![key, hidden]),
            ("self_attn.v_proj", vec![key, hidden]),
            ("self_attn.o_proj", vec![hidden, query]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![feed, hidden]),
            ("mlp.up_proj", vec![feed, hidden]),
            ("mlp.down_proj", vec![hidden, feed]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all
}

fn safetensors(entries: &[(String, Vec<u64>)], salt: &str, dtype: &str) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for (name, shape) in entries {
        let bytes = tensor(salt, name, shape, dtype);
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Writes the folder of a fixture.
fn write(llama: &Value) -> Folder {
    let name = llama["name"].as_str().unwrap();
    let folder = std::env::temp_dir().join(format!("baton-folder-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), llama["config"].to_string()).unwrap();
    let (salt, dtype) = (llama["salt"].as_str().unwrap(), llama["dtype"].as_str().unwrap());
    let (all, shards) = (tensors(&llama["config"]), llama["shards"].as_u64().unwrap() as usize);
    let mut places = Map::new();
    for (n, part) in all.chunks(all.len().div_ceil(shards)).enumerate() {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", n + 1),
        };
        fs::write(folder.join(&file), safetensors(part, salt, dtype)).unwrap();
        places.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    if shards > 1 {
        let index = json!({"weight_map": places}).to_string();
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }
    Folder(folder)
}

fn llamas() -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../fixtures/llamas.json")).unwrap();
    all["llamas"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn open(model: &Path) -> Result<Box<dyn Engine>, engine::OpenError> {
    engine::open(&EngineConfig {
        model: model.to_owned(),
        threads: 2,
        kv_bytes: 8 << 20,
        page_tokens: 16,
        step_tokens: 64,
    })
}

/// Computes `tokens` behind `start` others; the token that follows.
fn step(engine: &mut dyn Engine, tokens: &[u32], start: u32, pages: &[PageId]) -> u32 {
    let sample = Some(Sample::greedy());
    let mut step = engine.submit(&[Chunk { sequence: 1, tokens, start, pages, sample }]).unwrap();
    engine.poll(&mut step).unwrap().unwrap().tokens[0].token.id
}

#[test]
fn folders_answer_as_transformers_does() {
    for llama in llamas() {
        let folder = write(&llama);
        let mut engine = open(&folder.0).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(engine.model().eos_tokens, [2, 3]);
        let (prompt, expect) = (ids(&llama["prompt"]), ids(&llama["ids"]));
        // Scattered, and other ones for each way to cut the prompt.
        for (run, chunk) in [prompt.len(), 16, 7, 1].into_iter().enumerate() {
            let pages: Vec<PageId> = [3, 0, 5, 2, 4].map(|page| PageId(page + 6 * run as u32)).to_vec();
            let mut start = 0;
            let mut next = 0;
            for part in prompt.chunks(chunk) {
                next = step(engine.as_mut(), part, start, &pages);
                start += part.len() as u32;
            }
            let mut answer = vec![next];
            while answer.len() < expect.len() {
                next = step(engine.as_mut(), &[next], start, &pages);
                start += 1;
                answer.push(next);
            }
            assert_eq!(answer, expect, "{} in chunks of {chunk}", llama["name"]);
        }
    }
}

#[test]
fn folders_that_cannot_be_served_say_why() {
    let llama = &llamas()[3];
    let check = |change: &dyn Fn(&Path), words: &[&str]| {
        let folder = write(llama);
        change(&folder.0);
        let error = open(&folder.0).err().expect("it is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    };
    let config = |key: &'static str, value: Value| {
        move |folder: &Path| {
            let mut config = llama["config"].clone();
            config[key] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        }
    };
    check(&|folder| fs::remove_file(folder.join("config.json")).unwrap(), &["config.json", "GGUF"]);
    check(&|folder| fs::write(folder.join("config.json"), "{").unwrap(), &["config.json"]);
    check(&config("model_type", json!("mixtral")), &["mixtral", "llama"]);
    check(&config("attention_bias", json!(true)), &["biases"]);
    check(&config("hidden_act", json!("gelu")), &["gelu", "silu"]);
    check(&config("num_key_value_heads", json!(3)), &["4 heads", "3 KV heads"]);
    check(&config("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})), &["yarn"]);
    check(&config("num_hidden_layers", json!(1)), &["model.layers.1"]);
    check(&config("vocab_size", json!(76)), &["token_embd.weight", "[64, 75]"]);
    let second = "model-00002-of-00002.safetensors";
    check(&|folder| fs::remove_file(folder.join(second)).unwrap(), &[second, "cannot be read"]);
    let cut = |folder: &Path| {
        let bytes = fs::read(folder.join(second)).unwrap();
        fs::write(folder.join(second), &bytes[..bytes.len() - 1]).unwrap();
    };
    check(&cut, &[second, "truncated", "fetch it again"]);
    check(&|folder| fs::write(folder.join(second), [255; 16]).unwrap(), &[second, "malformed"]);
    check(&|folder| fs::write(folder.join(second), b"12").unwrap(), &[second, "truncated"]);
}
