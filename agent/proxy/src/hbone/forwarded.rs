//! Who opened a tunnelled connection, and whereto: the `Forwarded` header (RFC 7239) and the authority of a CONNECT.
use http::{HeaderMap, HeaderValue, header::FORWARDED, uri::Authority};
use std::net::SocketAddr;

/// `for="ip:port"`; the first one of several.
pub fn source(headers: &HeaderMap) -> Option<SocketAddr> {
    let value = headers.get(FORWARDED)?.to_str().ok()?;
    let first = value.split(',').next()?;
    let (_, address) = first
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    let address = address.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(address);
    address.parse().ok().map(|address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

pub fn header(source: SocketAddr) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("for=\"{source}\"")).ok()
}

/// An address and port; names are not resolved.
pub fn destination(authority: Option<&Authority>) -> Option<SocketAddr> {
    let address: SocketAddr = authority?.as_str().parse().ok()?;
    (address.port() != 0).then(|| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from(value: &str) -> Option<SocketAddr> {
        source(&HeaderMap::from_iter([(FORWARDED, HeaderValue::from_str(value).unwrap())]))
    }

    #[test]
    fn the_source_is_read_as_ztunnel_writes_it() {
        assert_eq!(from("for=\"10.77.0.1:48154\""), "10.77.0.1:48154".parse().ok());
        assert_eq!(from("proto=http; For=\"[fd00::1]:5\";by=x, for=\"1.2.3.4:1\""), "[fd00::1]:5".parse().ok());
        for wrong in ["for=unknown", "for=\"10.0.0.1\"", "by=\"10.0.0.1:5\"", "", "for"] {
            assert_eq!(from(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_authority_is_an_address_with_a_port() {
        let parse = |text: &str| destination(Some(&text.parse().unwrap()));
        assert_eq!(parse("10.1.2.2:80"), "10.1.2.2:80".parse().ok());
        assert_eq!(parse("[fd00::2]:80"), "[fd00::2]:80".parse().ok());
        for wrong in ["10.1.2.2", "api.shop:80", "u@10.1.2.2:80", "10.1.2.2:0"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(destination(None), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(v6: bool, bits: u128, port: u16) {
            let ip = if v6 { std::net::IpAddr::from(bits.to_be_bytes()).to_canonical() } else { (bits as u32).to_be_bytes().into() };
            let address = SocketAddr::new(ip, port);
            let headers = HeaderMap::from_iter([(FORWARDED, header(address).unwrap())]);
            prop_assert_eq!(source(&headers), Some(address));
        }

        #[test]
        fn nothing_breaks_the_parser(value in "\\PC{0,60}") {
            if let Ok(value) = HeaderValue::from_str(&value) {
                source(&HeaderMap::from_iter([(FORWARDED, value)]));
            }
        }
    }
}
