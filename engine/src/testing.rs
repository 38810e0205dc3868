//! Test helpers: GGUF files with given contents, and tiny random models.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use half::f16;

use crate::model::EngineConfig;

/// A file in the system's temporary folder. Dropping the value deletes the file and its checksum file.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baton-engine-{}-{number}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of this file's checksum file.
    pub(crate) fn checksum_path(&self) -> PathBuf {
        PathBuf::from(format!("{}.sha256", self.0.display()))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.checksum_path());
    }
}

/// Builds a GGUF file.
#[derive(Default)]
pub(crate) struct GgufWriter {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl GgufWriter {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.value_count += 1;
        put_text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        &mut self.values
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        put_text(self.key(key, 8), value);
        self
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, 4).extend(value.to_le_bytes());
        self
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, 6).extend(value.to_le_bytes());
        self
    }

    pub(crate) fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key, 7).push(u8::from(value));
        self
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let to = self.key(key, 9);
        to.extend(8u32.to_le_bytes());
        to.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_text(to, value));
        self
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let to = self.key(key, 9);
        to.extend(5u32.to_le_bytes());
        to.extend((values.len() as u64).to_le_bytes());
        to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        self.tensor_count += 1;
        put_text(&mut self.tensors, name);
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        self.tensors.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.value_count.to_le_bytes());
        file.extend(&self.values);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.bytes());
}

/// A deterministic generator of pseudorandom numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }

    /// `count` random numbers: their bytes in a GGUF type, and their values as floats.
    pub(crate) fn tensor(&mut self, kind: u32, count: usize, scale: f32) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut floats) = (Vec::new(), Vec::new());
        match kind {
            0 => {
                floats.extend((0..count).map(|_| self.float() * scale));
                bytes.extend(floats.iter().flat_map(|value| value.to_le_bytes()));
            }
            3 => {
                for _ in 0..count / 32 {
                    let d = f16::from_f32(self.float() * scale / 8.0);
                    let m = f16::from_f32(d.to_f32() * -7.5);
                    bytes.extend(d.to_le_bytes());
                    bytes.extend(m.to_le_bytes());
                    let packed: [u8; 16] = std::array::from_fn(|_| self.next() as u8);
                    bytes.extend(packed);
                    let low = packed.iter().map(|byte| byte & 15);
                    let nibbles = low.chain(packed.iter().map(|byte| byte >> 4));
                    floats.extend(nibbles.map(|q| d.to_f32() * f32::from(q) + m.to_f32()));
                }
            }
            8 => {
                for _ in 0..count / 32 {
                    let d = f16::from_f32(self.float() * scale / 127.0);
                    bytes.extend(d.to_le_bytes());
                    let packed: [u8; 32] = std::array::from_fn(|_| self.next() as u8);
                    bytes.extend(packed);
                    floats.extend(packed.iter().map(|&q| d.to_f32() * f32::from(q as i8)));
                }
            }
            kind => bytes.resize(count * 4, kind as u8),
        }
        (bytes, floats)
    }
}

/// The sizes of a tiny model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiny {
    /// `general.architecture`.
    pub(crate) architecture: &'static str,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    /// The GGUF number of the matrices' type. The embedding is Q8_0 if the hidden size allows it.
    pub(crate) kind: u32,
    pub(crate) hidden: u32,
    pub(crate) feed: u32,
    pub(crate) tied: bool,
    /// The format of keys and values.
    pub(crate) kv_dtype: crate::KvCacheDtype,
}

impl Tiny {
    pub(crate) const USUAL: Self = Self {
        architecture: "llama",
        heads: 4,
        kv_heads: 2,
        kind: 3,
        tied: true,
        hidden: 64,
        feed: 96,
        kv_dtype: crate::KvCacheDtype::Auto,
    };
    pub(crate) const LAYERS: u32 = 2;
    pub(crate) const HEAD_DIM: u32 = 32;
    /// Not a multiple of the panel width.
    pub(crate) const VOCABULARY: u32 = 75;
    pub(crate) const CONTEXT: u32 = 256;
    pub(crate) const EPSILON: f32 = 1e-5;
    pub(crate) const THETA: f32 = 10_000.0;

    /// Bytes of the keys and values of one token.
    pub(crate) const fn kv_bytes(&self) -> u64 {
        (Self::LAYERS * 2 * self.kv_heads * Self::HEAD_DIM * 4) as u64
    }

    /// The contents of the model's file, and the floats of every tensor by name.
    pub(crate) fn build(&self) -> (GgufWriter, HashMap<String, Vec<f32>>) {
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let mut writer = GgufWriter::default();
        writer
            .text("general.architecture", self.architecture)
            .text("general.name", "tiny")
            .u32(&key("block_count"), Self::LAYERS)
            .u32(&key("context_length"), Self::CONTEXT)
            .u32(&key("embedding_length"), self.hidden)
            .u32(&key("feed_forward_length"), self.feed)
            .u32(&key("attention.head_count"), self.heads)
            .u32(&key("attention.head_count_kv"), self.kv_heads)
            .u32(&key("attention.key_length"), Self::HEAD_DIM)
            .f32(&key("attention.layer_norm_rms_epsilon"), Self::EPSILON)
            .f32(&key("rope.freq_base"), Self::THETA)
            .u32("tokenizer.ggml.eos_token_id", 2);
        let mut floats = HashMap::new();
        let mut random = Random(7 + u64::from(self.heads * 8 + self.kv_heads));
        let mut add = |name: String, inputs: u32, outputs: u32, kind: u32| {
            let one = [u64::from(inputs)];
            let two = [u64::from(inputs), u64::from(outputs)];
            let dimensions: &[u64] = if outputs == 0 { &one } else { &two };
            let scale = if outputs == 0 { 1.0 } else { 2.0 / (inputs as f32).sqrt() };
            let (bytes, values) = random.tensor(kind, (inputs * outputs.max(1)) as usize, scale);
            writer.tensor(&name, dimensions, kind, bytes);
            floats.insert(name, values);
        };
        let (query, key) = (self.heads * Self::HEAD_DIM, self.kv_heads * Self::HEAD_DIM);
        let embedding = if self.hidden.is_multiple_of(32) { 8 } else { self.kind };
        add("token_embd.weight".into(), self.hidden, Self::VOCABULARY, embedding);
        add("output_norm.weight".into(), self.hidden, 0, 0);
        if !self.tied {
            add("output.weight".into(), self.hidden, Self::VOCABULARY, self.kind);
        }
        for layer in 0..Self::LAYERS {
            for (name, inputs, outputs, kind) in [
                ("attn_norm", self.hidden, 0, 0),
                ("attn_q", self.hidden, query, self.kind),
                ("attn_k", self.hidden, key, self.kind),
                ("attn_v", self.hidden, key, self.kind),
                ("attn_output", query, self.hidden, self.kind),
                ("ffn_norm", self.hidden, 0, 0),
                ("ffn_gate", self.hidden, self.feed, self.kind),
                ("ffn_up", self.hidden, self.feed, self.kind),
                ("ffn_down", self.feed, self.hidden, self.kind),
            ] {
                add(format!("blk.{layer}.{name}.weight"), inputs, outputs, kind);
            }
            for (name, length) in self.vectors() {
                add(format!("blk.{layer}.{name}"), length, 0, 0);
            }
        }
        (writer, floats)
    }

    /// The vectors that only this architecture has, and their lengths.
    fn vectors(&self) -> Vec<(&'static str, u32)> {
        let (query, key) = (self.heads * Self::HEAD_DIM, self.kv_heads * Self::HEAD_DIM);
        match self.architecture {
            "qwen2" => vec![("attn_q.bias", query), ("attn_k.bias", key), ("attn_v.bias", key)],
            "qwen3" => vec![("attn_q_norm.weight", Self::HEAD_DIM), ("attn_k_norm.weight", Self::HEAD_DIM)],
            _ => Vec::new(),
        }
    }

    /// A file with the model, and a configuration that opens it.
    pub(crate) fn file(&self) -> (TempFile, EngineConfig) {
        let file = TempFile::new("tiny.gguf", &self.build().0.finish());
        let config = EngineConfig {
            model: file.path().to_owned(),
            threads: 2,
            kv_bytes: 1024 * self.kv_bytes(),
            page_tokens: Some(8),
            step_tokens: 256,
            device: crate::ComputeDevice::Cpu,
            load_format: crate::LoadFormat::Auto,
            quantization: crate::Quantization::None,
            kv_dtype: self.kv_dtype,
            digests: None,
        };
        (file, config)
    }
}
