//! Headers as plugins see them: with the pseudo headers of HTTP/2, whatever the version on the wire.
//!
//! The fields stay in an `http::HeaderMap`, so that a request's headers go in and out without copies.
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::HOST,
    request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Headers of a request or response, or trailers. A mutation that would not be valid HTTP is refused.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    pseudo: Pseudo,
    pub fields: HeaderMap,
}

#[derive(Clone, Debug, Default)]
enum Pseudo {
    #[default]
    None,
    Request {
        method: Method,
        path: Option<PathAndQuery>,
        authority: Option<Authority>,
        scheme: Option<Scheme>,
    },
    Response {
        status: StatusCode,
    },
}

/// The mutation is not valid HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

impl Headers {
    /// Takes the headers out of a request; `Host` becomes `:authority`. `scheme` is used where the URI has none.
    pub fn take_request(parts: &mut request::Parts, scheme: Scheme) -> Self {
        let mut fields = std::mem::take(&mut parts.headers);
        let host = fields.remove(HOST);
        let uri = std::mem::take(&mut parts.uri).into_parts();
        let authority =
            uri.authority.or_else(|| host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok()));
        Self {
            pseudo: Pseudo::Request {
                method: std::mem::take(&mut parts.method),
                path: uri.path_and_query,
                authority,
                scheme: Some(uri.scheme.unwrap_or(scheme)),
            },
            fields,
        }
    }

    /// Puts them back. HTTP/1 gets an origin-form target and a `Host` field, HTTP/2 a full URI; a CONNECT keeps its
    /// authority form.
    pub fn put_request(self, parts: &mut request::Parts) -> Result<(), Invalid> {
        let Pseudo::Request { method, path, authority, scheme } = self.pseudo else { return Err(Invalid) };
        parts.headers = self.fields;
        let mut uri = http::uri::Parts::default();
        if method == Method::CONNECT && path.is_none() {
            uri.authority = authority;
        } else if parts.version < Version::HTTP_2 {
            if let Some(authority) = &authority {
                parts.headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(|_| Invalid)?);
            }
            uri.path_and_query = path;
        } else {
            uri.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
            if authority.is_some() {
                uri.scheme = scheme;
                uri.authority = authority;
            }
        }
        parts.method = method;
        parts.uri = Uri::from_parts(uri).map_err(|_| Invalid)?;
        Ok(())
    }

    /// Takes the headers out of a response.
    pub fn take_response(parts: &mut response::Parts) -> Self {
        Self::response(parts.status, std::mem::take(&mut parts.headers))
    }

    /// Puts them back.
    pub fn put_response(self, parts: &mut response::Parts) {
        if let Pseudo::Response { status } = self.pseudo {
            parts.status = status;
        }
        parts.headers = self.fields;
    }

    /// A request's headers from their parts.
    pub fn request(method: Method, path: PathAndQuery, authority: Option<Authority>, fields: HeaderMap) -> Self {
        let pseudo = Pseudo::Request { method, path: Some(path), authority, scheme: Some(Scheme::HTTP) };
        Self { pseudo, fields }
    }

    pub fn response(status: StatusCode, fields: HeaderMap) -> Self {
        Self { pseudo: Pseudo::Response { status }, fields }
    }

    pub fn trailers(fields: HeaderMap) -> Self {
        Self { pseudo: Pseudo::None, fields }
    }

    pub fn status(&self) -> Option<StatusCode> {
        if let Pseudo::Response { status } = self.pseudo { Some(status) } else { None }
    }

    /// The path without the query.
    pub(crate) fn url_path(&self) -> Option<&str> {
        if let Pseudo::Request { path: Some(path), .. } = &self.pseudo { Some(path.path()) } else { None }
    }

    pub(crate) fn query(&self) -> Option<&str> {
        if let Pseudo::Request { path: Some(path), .. } = &self.pseudo { path.query() } else { None }
    }

    /// The first value of that name; `host` of a request is its `:authority`. Names are compared without case.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        if let Pseudo::Request { method, path, authority, scheme } = &self.pseudo {
            match name {
                b":path" => return path.as_ref().map(|path| path.as_str().as_bytes()),
                b":method" => return Some(method.as_str().as_bytes()),
                b":authority" | b"host" => return authority.as_ref().map(|authority| authority.as_str().as_bytes()),
                b":scheme" => return scheme.as_ref().map(|scheme| scheme.as_str().as_bytes()),
                _ => {}
            }
        } else if let (Pseudo::Response { status }, b":status") = (&self.pseudo, name) {
            return Some(status_text(status));
        }
        // Names in lower case are looked up as they are; `HeaderName` lowers the rest.
        let name = HeaderName::from_bytes(name).ok()?;
        self.fields.get(name).map(HeaderValue::as_bytes)
    }

    /// Every pair, pseudo headers first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let pseudo: [Option<(&[u8], &[u8])>; 4] = match &self.pseudo {
            Pseudo::None => [None; 4],
            Pseudo::Request { method, path, authority, scheme } => [
                Some((b":method", method.as_str().as_bytes())),
                path.as_ref().map(|path| (&b":path"[..], path.as_str().as_bytes())),
                authority.as_ref().map(|authority| (&b":authority"[..], authority.as_str().as_bytes())),
                scheme.as_ref().map(|scheme| (&b":scheme"[..], scheme.as_str().as_bytes())),
            ],
            Pseudo::Response { status } => [Some((b":status", status_text(status))), None, None, None],
        };
        let fields = self.fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        pseudo.into_iter().flatten().chain(fields)
    }

    /// Number of pairs, pseudo headers among them.
    pub fn len(&self) -> usize {
        let pseudo = match &self.pseudo {
            Pseudo::None => 0,
            Pseudo::Request { path, authority, scheme, .. } => {
                1 + usize::from(path.is_some()) + usize::from(authority.is_some()) + usize::from(scheme.is_some())
            }
            Pseudo::Response { .. } => 1,
        };
        pseudo + self.fields.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces every value of that name by this one.
    pub fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), Invalid> {
        if let Some(done) = self.set_pseudo(name, value) {
            return done;
        }
        self.fields.insert(parse_name(name)?, parse_value(value)?);
        Ok(())
    }

    /// Adds a value. Pseudo headers have only one, which is replaced.
    pub fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Invalid> {
        if let Some(done) = self.set_pseudo(name, value) {
            return done;
        }
        self.fields.append(parse_name(name)?, parse_value(value)?);
        Ok(())
    }

    /// Removes every value of that name. Pseudo headers stay: a message cannot be without them.
    pub fn remove(&mut self, name: &[u8]) {
        if let Ok(name) = HeaderName::from_bytes(name) {
            self.fields.remove(name);
        }
    }

    /// Replaces all fields; pseudo headers that are not among the pairs stay as they are.
    pub fn set_all(&mut self, pairs: &[(&[u8], &[u8])]) -> Result<(), Invalid> {
        let mut new = Self { pseudo: self.pseudo.clone(), fields: HeaderMap::with_capacity(pairs.len()) };
        for (name, value) in pairs {
            new.add(name, value)?;
        }
        *self = new;
        Ok(())
    }

    /// `None`: not a pseudo header here.
    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<Result<(), Invalid>> {
        match (&mut self.pseudo, name) {
            (Pseudo::Request { method, .. }, b":method") => Some(set(method, Method::from_bytes(value).ok())),
            (Pseudo::Request { path, .. }, b":path") => Some(set(path, parse_path(value).map(Some))),
            (Pseudo::Request { authority, .. }, b":authority" | b"host") => {
                Some(set(authority, Authority::try_from(value).ok().map(Some)))
            }
            (Pseudo::Request { scheme, .. }, b":scheme") => Some(set(scheme, Scheme::try_from(value).ok().map(Some))),
            (Pseudo::Response { status }, b":status") => Some(set(status, StatusCode::from_bytes(value).ok())),
            (_, [b':', ..]) => Some(Err(Invalid)),
            _ => None,
        }
    }
}

fn set<T>(place: &mut T, value: Option<T>) -> Result<(), Invalid> {
    *place = value.ok_or(Invalid)?;
    Ok(())
}

fn parse_path(value: &[u8]) -> Option<PathAndQuery> {
    let path = PathAndQuery::try_from(value).ok()?;
    // A fragment is cut off silently by the parser, and a path must not change its meaning on the way.
    (path.as_str().len() == value.len()).then_some(path)
}

fn parse_name(name: &[u8]) -> Result<HeaderName, Invalid> {
    HeaderName::from_bytes(name).map_err(|_| Invalid)
}

fn parse_value(value: &[u8]) -> Result<HeaderValue, Invalid> {
    HeaderValue::from_bytes(value).map_err(|_| Invalid)
}

fn status_text(status: &StatusCode) -> &[u8] {
    status.as_str().as_bytes()
}

#[cfg(test)]
mod tests;
