//! Is it HTTP? Told from the first bytes of a client.

/// The longest request line that is waited for.
pub const MAX_REQUEST_LINE: usize = 32 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http1,
    /// With prior knowledge: the client sent the preface.
    Http2,
    Other,
}

/// `None`: more bytes are needed.
pub fn classify(head: &[u8]) -> Option<Kind> {
    let checked = head.len().min(PREFACE.len());
    if checked > 0 && head[..checked] == PREFACE[..checked] {
        return (checked == PREFACE.len()).then_some(Kind::Http2);
    }
    // Servers skip empty lines before a request line (RFC 9112, 2.2).
    let start = head.iter().position(|b| !b"\r\n".contains(b)).unwrap_or(head.len());
    let head = &head[start..];
    if head.iter().take_while(|b| **b != b' ' && **b != b'\n').any(|b| !is_token(*b)) {
        return Some(Kind::Other);
    }
    match head.iter().position(|b| *b == b'\n') {
        Some(end) => Some(if is_request_line(&head[..end]) { Kind::Http1 } else { Kind::Other }),
        None if start + head.len() >= MAX_REQUEST_LINE => Some(Kind::Other),
        None => None,
    }
}

fn is_request_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(end) = line.iter().position(|b| *b == b' ') else { return false };
    let (method, rest) = line.split_at(end);
    // `GET /` alone is HTTP/0.9, which some servers still answer: it is for the parser to refuse.
    method == b"GET" || (!method.is_empty() && rest.windows(6).any(|w| w == b" HTTP/"))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_and_prefaces_are_http_and_all_else_is_not() {
        for (head, kind) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Kind::Http1)),
            (b"\r\n\r\nget /x HTTP/1.0\n", Some(Kind::Http1)),
            (b"GET / HTTP/1.1", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(Kind::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nS", None),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Kind::Http1)),
            (b"", None),
            (b"SSH-2.0-x\r\n", Some(Kind::Other)),
            (b"\x16\x03\x01", Some(Kind::Other)),
            (b"GET /\r\n", Some(Kind::Http1)),
            (b"HELO there\r\n", Some(Kind::Other)),
            (b" GET / HTTP/1.1\r\n", Some(Kind::Other)),
        ] {
            assert_eq!(classify(head), kind, "{}", head.escape_ascii());
        }
        assert_eq!(classify(&[b'A'; MAX_REQUEST_LINE]), Some(Kind::Other));
    }

    proptest::proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(head in proptest::collection::vec(proptest::num::u8::ANY, 0..64), cut in 0..64usize) {
            let part = &head[..cut.min(head.len())];
            if let Some(kind) = classify(part) {
                proptest::prop_assert_eq!(classify(&head), Some(kind));
            }
        }
    }
}
