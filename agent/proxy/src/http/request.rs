//! What is asked of every request before anyone judges it: it must mean the same to us as to the server behind us.
use http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{CONNECTION, HOST, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery},
};

/// Answered by 400; the text is for the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("bad request: want exactly one Host that is a host")]
    Host,
    #[error("bad request: dot segments in the path")]
    DotSegments,
    #[error("bad request: CONNECT is not proxied")]
    Connect,
}

/// Checks a request and brings it to one form: a target in origin form (HTTP/1), only known words in `Connection`, no
/// upgrade to HTTP/2 (its requests would be seen by nobody).
pub fn normalize(parts: &mut Parts) -> Result<(), BadRequest> {
    if parts.method == Method::CONNECT {
        return Err(BadRequest::Connect);
    }
    if has_dot_segments(parts.uri.path()) {
        return Err(BadRequest::DotSegments);
    }
    normalize_host(parts)?;
    if parts.version < Version::HTTP_2 {
        normalize_connection(&mut parts.headers);
    }
    Ok(())
}

/// The host that the request is for, with its port if one is given.
pub fn host(parts: &Parts) -> &str {
    match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}

pub fn wants_upgrade(parts: &Parts) -> bool {
    parts.version < Version::HTTP_2 && parts.headers.contains_key(UPGRADE)
}

fn normalize_host(parts: &mut Parts) -> Result<(), BadRequest> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::Host);
    }
    let named = match named {
        Some(value) => Some(Authority::try_from(value.as_bytes()).map_err(|_| BadRequest::Host)?),
        None => None,
    };
    let http2 = parts.version >= Version::HTTP_2;
    let authority = parts.uri.authority().cloned();
    let host = match (&authority, &named) {
        (Some(authority), Some(named)) if http2 && authority != named => return Err(BadRequest::Host),
        (Some(host), _) | (None, Some(host)) => Some(host.clone()),
        // HTTP/1.0 knows no Host.
        (None, None) if parts.version <= Version::HTTP_10 => None,
        (None, None) => return Err(BadRequest::Host),
    };
    if host.as_ref().is_some_and(|host| host.as_str().contains('@')) {
        return Err(BadRequest::Host);
    }
    if !http2 && let Some(host) = authority {
        // Absolute form: the target's host counts (RFC 9112, 3.2.2), so that is what the server sees.
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
        parts.headers.insert(HOST, HeaderValue::from_str(host.as_str()).map_err(|_| BadRequest::Host)?);
    }
    Ok(())
}

/// `Connection` can name headers that the next hop removes: nobody may remove what plugins have added.
fn normalize_connection(headers: &mut HeaderMap) {
    let words = |name| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value: &HeaderValue| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|word| word.trim().to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    let to_http2 = words(UPGRADE).iter().any(|word| word == "h2c" || word.starts_with("http/2"));
    let given = words(CONNECTION);
    if to_http2 {
        headers.remove(UPGRADE);
    }
    if given.is_empty() {
        return;
    }
    let kept: Vec<&str> = ["close", "keep-alive", "te", "upgrade"]
        .into_iter()
        .filter(|word| given.iter().any(|g| g == word) && !(to_http2 && *word == "upgrade"))
        .collect();
    match HeaderValue::from_str(&kept.join(", ")) {
        Ok(value) if !kept.is_empty() => headers.insert(CONNECTION, value),
        _ => headers.remove(CONNECTION),
    };
}

/// Rules see the path as it is written; a server may resolve `..` and serve another one.
fn has_dot_segments(path: &str) -> bool {
    if !path.contains('.') && !path.contains('%') {
        return false;
    }
    let lower = path.to_ascii_lowercase();
    let plain = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    plain.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).any(|s| s == "." || s == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(target: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(target).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_request_that_two_readers_could_read_differently_is_refused() {
        let v1 = Version::HTTP_11;
        for (target, version, headers, error) in [
            ("/", v1, &[][..], BadRequest::Host),
            ("/", v1, &[("host", "a"), ("host", "b")], BadRequest::Host),
            ("/", v1, &[("host", "a b")], BadRequest::Host),
            ("http://a/", Version::HTTP_2, &[("host", "b")], BadRequest::Host),
            ("/api/../admin", v1, &[("host", "a")], BadRequest::DotSegments),
            ("/api/%2E%2e%2fadmin", v1, &[("host", "a")], BadRequest::DotSegments),
            ("/api/..;x/admin", v1, &[("host", "a")], BadRequest::DotSegments),
            ("/api/.", v1, &[("host", "a")], BadRequest::DotSegments),
        ] {
            assert_eq!(normalize(&mut parts(target, version, headers)), Err(error), "{target} {headers:?}");
        }
        for target in ["/a.b/c..d", "/...", "/%2E%2Ea", "/?q=/../"] {
            assert_eq!(normalize(&mut parts(target, v1, &[("host", "a")])), Ok(()), "{target}");
        }
        assert_eq!(normalize(&mut parts("/", Version::HTTP_10, &[])), Ok(()));
    }

    #[test]
    fn an_absolute_target_decides_the_host() {
        let mut request = parts("http://real:81/x?y", Version::HTTP_11, &[("host", "other")]);
        normalize(&mut request).unwrap();
        assert_eq!((request.uri.to_string().as_str(), host(&request)), ("/x?y", "real:81"));
    }

    #[test]
    fn connection_cannot_remove_headers_nor_upgrade_to_http2() {
        let mut request = parts(
            "/",
            Version::HTTP_11,
            &[("host", "a"), ("connection", "Upgrade, X-User, keep-alive"), ("upgrade", "h2c")],
        );
        normalize(&mut request).unwrap();
        assert_eq!(
            (&request.headers[CONNECTION], wants_upgrade(&request)),
            (&HeaderValue::from_static("keep-alive"), false)
        );
        let mut request =
            parts("/", Version::HTTP_11, &[("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket")]);
        normalize(&mut request).unwrap();
        assert_eq!(
            (&request.headers[CONNECTION], wants_upgrade(&request)),
            (&HeaderValue::from_static("upgrade"), true)
        );
    }
}
