//! Checks that Rust and C++ declare the same arguments. The tests parse the kernel sources as text, because they run
//! without a CUDA compiler.

use super::ALL;

/// The kernel sources that declare arguments.
const SOURCES: [&str; 11] = [
    include_str!("../../../kernels/counts.cu"),
    include_str!("../../../kernels/score.cu"),
    include_str!("../../../kernels/glue.cu"),
    include_str!("../../../kernels/sample.cu"),
    include_str!("../../../kernels/row_products.cu"),
    include_str!("../../../kernels/fp8.cu"),
    include_str!("../../../kernels/kv.cu"),
    include_str!("../../../kernels/page_hash.cu"),
    include_str!("../../../kernels/fp8_products.cu"),
    include_str!("../../../kernels/decode.cu"),
    include_str!("../../../kernels/fa3.cu"),
];

/// The Rust name of a C++ type.
fn in_rust(kind: &str) -> String {
    if let Some(target) = kind.strip_suffix('*') {
        return match target.strip_prefix("const ") {
            Some(target) => format!("*const {}", in_rust(target)),
            None => format!("*mut {}", in_rust(target)),
        };
    }
    let known = [
        ("void", "c_void"),
        ("bf16", "bf16"),
        ("__nv_bfloat16", "bf16"),
        ("float", "f32"),
        ("uint8_t", "u8"),
        ("uint16_t", "u16"),
        ("int32_t", "i32"),
        ("uint32_t", "u32"),
        ("int64_t", "i64"),
        ("uint64_t", "u64"),
    ];
    let found = known.iter().find(|(name, _)| *name == kind);
    found.unwrap_or_else(|| panic!("{kind:?} has no Rust name")).1.to_owned()
}

/// The fields of the C++ `struct name`, with their Rust types. Ignores comments.
fn fields(source: &str, name: &str) -> Option<Vec<(String, String)>> {
    let (_, after) = source.split_once(&format!("struct {name} {{\n"))?;
    let (body, _) = after.split_once("};")?;
    let statements: String = body.lines().filter_map(|line| line.split("//").next()).collect();
    let field = |statement: &str| {
        let (kind, name) = statement.trim().rsplit_once(' ')?;
        Some((name.to_owned(), in_rust(kind.trim())))
    };
    Some(statements.split(';').filter_map(field).collect())
}

#[test]
fn both_languages_declare_the_same_fields_in_the_same_order() {
    for (name, bytes, expect) in ALL {
        let found: Vec<_> =
            SOURCES.iter().filter_map(|source| Some((source, fields(source, name)?))).collect();
        let [(source, found)] = found.as_slice() else { panic!("{name} is declared {} times", found.len()) };
        let expect: Vec<_> = expect.iter().map(|(name, kind)| (name.to_string(), kind.to_string())).collect();
        assert_eq!(*found, expect, "{name}");
        let check = format!("static_assert(sizeof({name}) == {bytes});");
        assert!(source.contains(&check), "the source of {name} lacks {check}");
    }
}

/// `RowProducts` → `row_products`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[test]
fn both_languages_call_the_same_functions_with_them() {
    let calls = include_str!("../../cuda/kernels.rs");
    for (name, ..) in ALL {
        let function = format!("baton_{}", snake(name));
        let in_c = [
            format!("int {function}(const {name}* arguments, cudaStream_t stream)"),
            // One function per head size, and perhaps per format of keys and values.
            format!("int JOIN({function}_, BATON_HEAD_DIM)(const {name}* arguments, cudaStream_t stream)"),
            format!("int JOIN({function}_, INSTANCE)(const {name}* arguments, cudaStream_t stream)"),
        ];
        let found = |line: &String| SOURCES.iter().any(|source| source.contains(line));
        assert!(in_c.iter().any(found), "no kernel source has {in_c:?}");
        let in_rust = [format!("{name}: {function};"), format!("{name}: {function}_64, {function}_128")];
        assert!(in_rust.iter().any(|line| calls.contains(line)), "cuda/kernels.rs has none of {in_rust:?}");
    }
}
