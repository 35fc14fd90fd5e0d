use super::*;
use http::Request;

fn parts(version: Version) -> request::Parts {
    let uri = if version == Version::HTTP_2 { "http://shop.example:8080/a?b=c" } else { "/a?b=c" };
    let mut builder = Request::builder().method("POST").uri(uri).version(version).header("X-One", "1");
    if version != Version::HTTP_2 {
        builder = builder.header("Host", "shop.example:8080");
    }
    builder.header("x-one", "2").body(()).unwrap().into_parts().0
}

#[test]
fn a_request_looks_the_same_whatever_its_version() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let headers = Headers::take_request(&mut parts(version), Scheme::HTTP);
        let pairs: Vec<_> =
            headers.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect();
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (&**n, &**v)).collect();
        let expected = [
            (":method", "POST"),
            (":path", "/a?b=c"),
            (":authority", "shop.example:8080"),
            (":scheme", "http"),
            ("x-one", "1"),
            ("x-one", "2"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(headers.len(), pairs.len());
        assert_eq!(headers.get(b"host"), headers.get(b":authority"));
        assert_eq!(headers.get(b"X-ONE"), Some(&b"1"[..]));
    }
}

#[test]
fn a_request_goes_back_as_it_came() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let before = parts(version);
        let mut after = before.clone();
        Headers::take_request(&mut after, Scheme::HTTP).put_request(&mut after).unwrap();
        assert_eq!((&after.method, &after.uri, &after.headers), (&before.method, &before.uri, &before.headers));
    }
}

#[test]
fn a_request_to_an_authority_keeps_its_form() {
    let mut parts = Request::builder().method("CONNECT").uri("10.0.0.1:80").body(()).unwrap().into_parts().0;
    Headers::take_request(&mut parts, Scheme::HTTP).put_request(&mut parts).unwrap();
    assert_eq!(parts.uri, "10.0.0.1:80");
}

#[test]
fn mutations_that_are_not_http_are_refused() {
    let mut headers = Headers::take_request(&mut parts(Version::HTTP_11), Scheme::HTTP);
    assert_eq!(headers.add(b"x", b"a\r\nevil: 1"), Err(Invalid));
    assert_eq!(headers.add(b"x y", b"a"), Err(Invalid));
    assert_eq!(headers.replace(b":path", b"/a b"), Err(Invalid));
    assert_eq!(headers.replace(b":path", b"/a#b"), Err(Invalid));
    assert_eq!(headers.replace(b":status", b"200"), Err(Invalid));
    assert_eq!(headers.get(b":path"), Some(&b"/a?b=c"[..]));
}

#[test]
fn a_failed_replacement_of_all_changes_nothing() {
    let mut headers = Headers::response(StatusCode::OK, HeaderMap::new());
    headers.add(b"a", b"b").unwrap();
    assert_eq!(headers.set_all(&[(b":status", b"404"), (b"bad name", b"")]), Err(Invalid));
    assert_eq!((headers.status(), headers.get(b"a")), (Some(StatusCode::OK), Some(&b"b"[..])));
    headers.set_all(&[(b":status", b"404"), (b"C", b"d")]).unwrap();
    assert_eq!(
        (headers.status(), headers.get(b"a"), headers.get(b"c")),
        (Some(StatusCode::NOT_FOUND), None, Some(&b"d"[..]))
    );
}
