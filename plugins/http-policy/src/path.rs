//! Other spellings of a path. A server may take `/a/..%2fadmin` for `/admin`; a policy that lets `/a/.*` pass must not
//! let `/admin` pass with it. So a path is judged as it came and, if that differs, as servers may understand it.

/// How a path stands to its normal form.
#[derive(Debug, PartialEq, Eq)]
pub enum Spelling {
    Normal,
    /// Also read as this.
    Also(Vec<u8>),
    /// Encoded too often for any honest client.
    Refused,
}

/// Encodings of encodings that are undone.
const ROUNDS: usize = 4;

/// `target` is a path with its query; the query is left as it is.
pub fn spelling(target: &[u8]) -> Spelling {
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if !is_odd(path) {
        return Spelling::Normal;
    }
    let mut normal = path.to_vec();
    for _ in 0..ROUNDS {
        let decoded = decode(&normal);
        let stable = decoded == normal;
        normal = decoded;
        if stable {
            normal = without_dots(&normal);
            if normal == path {
                return Spelling::Normal;
            }
            normal.extend_from_slice(query);
            return Spelling::Also(normal);
        }
    }
    Spelling::Refused
}

/// Whether a look at the normal form is needed at all.
fn is_odd(path: &[u8]) -> bool {
    let mut previous = 0;
    for byte in path {
        match byte {
            b'%' | b'\\' => return true,
            b'/' | b'.' if previous == b'/' => return true,
            _ => previous = *byte,
        }
    }
    false
}

/// Undoes one round of percent-encoding; a backslash becomes a slash.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, tail),
                _ => (b'%', &rest[1..]),
            },
            _ => (*first, tail),
        };
        out.push(if byte == b'\\' { b'/' } else { byte });
        rest = tail;
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Resolves `.` and `..` (with path parameters, too, as some servers do) and merges slashes.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut to_folder = false;
    for segment in path.split(|byte| *byte == b'/') {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        to_folder = true;
        match name {
            b"" if segment.is_empty() => {}
            b"." => {}
            b".." => drop(segments.pop()),
            _ => {
                segments.push(segment);
                to_folder = false;
            }
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if to_folder || out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_are_normal() {
        for path in ["/", "/a", "/a/", "/a.b/c..d", "/a?x=../..//%2f", "*", ""] {
            assert_eq!(spelling(path.as_bytes()), Spelling::Normal, "{path}");
        }
    }

    #[test]
    fn every_known_trick_is_undone() {
        for (path, normal) in [
            ("/a/../admin", "/admin"),
            ("/a/./b", "/a/b"),
            ("/a//b", "/a/b"),
            ("//admin", "/admin"),
            ("/a/..%2fadmin", "/admin"),
            ("/a/%2e%2E/admin?x=%2f", "/admin?x=%2f"),
            ("/a%2fb", "/a/b"),
            ("/a%252f..%252fadmin", "/admin"),
            ("/a/..;/admin", "/admin"),
            ("/a/..;x=y/admin", "/admin"),
            ("/a\\..\\admin", "/admin"),
            ("/a/%5c../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/../../..", "/"),
            ("/a/b/..", "/a/"),
        ] {
            assert_eq!(spelling(path.as_bytes()), Spelling::Also(normal.as_bytes().to_vec()), "{path}");
        }
    }

    #[test]
    fn endless_encoding_is_refused() {
        let path = format!("/%{}2f", "25".repeat(9));
        assert_eq!(spelling(path.as_bytes()), Spelling::Refused);
    }

    proptest! {
        #[test]
        fn a_normal_form_is_normal(path in "/[a-z./%2eEfF;?\\\\]{0,40}") {
            if let Spelling::Also(normal) = spelling(path.as_bytes()) {
                let end = normal.iter().position(|byte| *byte == b'?').unwrap_or(normal.len());
                prop_assert!(!normal[..end].windows(2).any(|pair| pair == b"//"));
                prop_assert!(!normal[..end].split(|byte| *byte == b'/').any(|segment| segment == b".." || segment == b"."));
            }
        }
    }
}
