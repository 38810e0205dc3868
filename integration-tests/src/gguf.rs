//! The small models as GGUF files in float32, with the names and the order of rows that llama.cpp's converter gives them.

use std::fs;

use anyhow::Result;

use crate::folders::{Folder, SmallModel, numbers, rounded, tensors};

/// The GGUF name of a tensor of transformers.
fn name_of(name: &str) -> String {
    let names = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The rows of queries or keys in the order of llama.cpp's Llamas: the two rows of a RoPE pair are adjacent.
fn in_pairs(rows: &[&[f32]], head: usize) -> Vec<f32> {
    let from = |row: usize| row / head * head + row % head % 2 * (head / 2) + row % head / 2;
    (0..rows.len()).flat_map(|row| rows[from(row)]).copied().collect()
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.bytes());
}

/// The keys of a header, and how many there are.
#[derive(Default)]
struct Header(Vec<u8>, u64);

impl Header {
    /// Adds a key with a value of a GGUF type.
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.0, key);
        self.0.extend(kind.to_le_bytes());
        self.0.extend(value);
        self.1 += 1;
    }
}

impl SmallModel {
    fn header(&self, head: usize) -> Header {
        let architecture = self.architecture();
        let mut header = Header::default();
        let mut text = (architecture.len() as u64).to_le_bytes().to_vec();
        text.extend(architecture.bytes());
        header.put("general.architecture", 8, &text);
        for (key, of) in [
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ] {
            let value = self.config[of].as_u64().unwrap_or_default() as u32;
            header.put(&format!("{architecture}.{key}"), 4, &value.to_le_bytes());
        }
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            header.put(&format!("{architecture}.{key}"), 4, &(head as u32).to_le_bytes());
        }
        let theta = &self.config["rope_parameters"]["rope_theta"];
        let theta = theta.as_f64().or(self.config["rope_theta"].as_f64());
        for (key, value) in [
            ("attention.layer_norm_rms_epsilon", self.config["rms_norm_eps"].as_f64()),
            ("rope.freq_base", theta),
        ] {
            let value = value.unwrap_or_default() as f32;
            header.put(&format!("{architecture}.{key}"), 6, &value.to_le_bytes());
        }
        header
    }

    /// `general.architecture`. Mistral is a Llama in llama.cpp.
    fn architecture(&self) -> &str {
        match self.config["model_type"].as_str() {
            Some("mistral") | None => "llama",
            Some(other) => other,
        }
    }

    /// Writes the model as `model.gguf` in a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_gguf(&self, purpose: &str) -> Result<Folder> {
        let size = |key: &str| self.config[key].as_u64().unwrap_or_default() as usize;
        let head = self.config["head_dim"].as_u64().map(|head| head as usize);
        let head = head.unwrap_or(size("hidden_size") / size("num_attention_heads"));
        let (header, all) = (self.header(head), tensors(&self.config));
        let (mut list, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in &all {
            let mut values = numbers(&self.salt, name, shape);
            values.iter_mut().for_each(|value| *value = rounded(*value, &self.dtype));
            let is_rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
            if is_rotated && self.architecture() == "llama" {
                let rows: Vec<&[f32]> = values.chunks(size("hidden_size")).collect();
                values = in_pairs(&rows, head);
            }
            put_text(&mut list, &name_of(name));
            list.extend((shape.len() as u32).to_le_bytes());
            list.extend(shape.iter().rev().flat_map(|size| size.to_le_bytes()));
            list.extend(0u32.to_le_bytes());
            list.extend((data.len() as u64).to_le_bytes());
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((all.len() as u64).to_le_bytes());
        file.extend(header.1.to_le_bytes());
        file.extend([header.0, list].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let folder = self.folder(purpose)?;
        fs::write(folder.0.join("model.gguf"), file)?;
        Ok(folder)
    }
}
