//! The header `traceparent` of the W3C: the trace that a request belongs to.

use std::fmt::Write as _;

use connector::frame::TraceContext;

/// The name of the header.
pub const TRACEPARENT: &str = "traceparent";

/// Reads a header. A value that is not valid counts as none.
pub(super) fn read(value: &str) -> Option<TraceContext> {
    let mut parts = value.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [version]: [u8; 1] = bytes(version)?;
    // Version 0 has exactly these parts. Later versions may have more.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace, span, [flags]) = (bytes(trace)?, bytes(span)?, bytes(flags)?);
    let is_valid = trace != [0; 16] && span != [0; 8];
    is_valid.then_some(TraceContext { trace, span, flags })
}

/// Writes a header.
pub(super) fn write(context: &TraceContext) -> String {
    let mut out = String::with_capacity(55);
    out.push_str("00-");
    push(&context.trace, &mut out);
    out.push('-');
    push(&context.span, &mut out);
    out.push('-');
    push(&[context.flags], &mut out);
    out
}

/// The id of a trace as people and tools write it.
pub(super) fn trace_id(context: &TraceContext) -> String {
    let mut out = String::with_capacity(32);
    push(&context.trace, &mut out);
    out
}

fn push(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
    }
}

/// The bytes of lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_lower_case = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != 2 * N || !is_lower_case {
        return None;
    }
    let mut out = [0; N];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let context = read(VALID).expect("it is the example of the W3C");
        assert_eq!((context.trace[0], context.span[1], context.flags), (0x4b, 0xf0, 1));
        assert_eq!(write(&context), VALID);
        assert_eq!(trace_id(&context), "4bf92f3577b34da6a3ce929d0e0e4736");
        let later = VALID.replacen("00", "cc", 1) + "-more";
        assert_eq!(read(&later), Some(context), "a later version may have more parts");
    }

    #[test]
    fn what_is_no_header_is_no_trace() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-é9bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
