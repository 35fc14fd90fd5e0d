//! Weft's own kinds. A field that is not known refuses the object.
use super::{
    Context, ParseError, body,
    fields::{Fields, text},
    folder,
};
use crate::types::{ClusterName, Labels, MeshPeer, ObjectName, PluginPhase, WasmPlugin};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) fn plugin(name: &ObjectName, object: &Value, context: &Context<'_>) -> Result<WasmPlugin, ParseError> {
    let mut fields = body(object)?;
    let spec = fields.take("spec").ok_or_else(|| ParseError::invalid("spec", "missing"))?;
    fields.finish()?;
    let mut fields = Fields::new("spec", spec)?;
    let selector = match fields.take("selector") {
        None => Labels::new(),
        Some(value) => {
            let mut fields = Fields::new(fields.path("selector"), value)?;
            let labels = fields.labels("matchLabels")?.unwrap_or_default();
            fields.finish()?;
            labels
        }
    };
    let url = url(&mut fields, context)?;
    let sha256 = fields.string("sha256")?.unwrap_or_default().to_ascii_lowercase();
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(fields.invalid("sha256", "want 64 hexadecimal digits, as sha256sum prints them"));
    }
    let phase = match fields.string("phase")? {
        None | Some("" | "UNSPECIFIED_PHASE") => PluginPhase::Unspecified,
        Some("AUTHN") => PluginPhase::Authn,
        Some("AUTHZ") => PluginPhase::Authz,
        Some("STATS") => PluginPhase::Stats,
        Some(other) => {
            return Err(fields.invalid("phase", format!("{other:?} is not known; want AUTHN, AUTHZ or STATS")));
        }
    };
    let priority = fields.integer("priority")?.unwrap_or(0);
    let priority = i32::try_from(priority).map_err(|_| fields.invalid("priority", "want a 32-bit number"))?;
    let plugin_config = fields.take("pluginConfig").cloned().unwrap_or(Value::Null);
    if !plugin_config.is_null() && !plugin_config.is_object() {
        return Err(fields.invalid("pluginConfig", "want an object"));
    }
    let fail_open = match fields.string("failStrategy")? {
        None | Some("" | "FAIL_CLOSE") => false,
        Some("FAIL_OPEN") => true,
        Some(other) => {
            return Err(fields.invalid("failStrategy", format!("{other:?} is not known; want FAIL_CLOSE or FAIL_OPEN")));
        }
    };
    let ports = ports(&mut fields)?;
    let env = env(&mut fields)?;
    fields.finish()?;
    Ok(WasmPlugin { name: name.clone(), selector, url, sha256, phase, priority, plugin_config, fail_open, ports, env })
}

/// Relative paths become whole here: only the reader knows the object's own file.
fn url(fields: &mut Fields<'_>, context: &Context<'_>) -> Result<String, ParseError> {
    let url = fields.string("url")?.filter(|url| !url.is_empty());
    let url = url.ok_or_else(|| fields.invalid("url", "missing; want file:///PATH/PLUGIN.wasm"))?;
    if let Some(path) = url.strip_prefix("file://") {
        if path.starts_with('/') {
            return Ok(url.to_owned());
        }
        return Err(fields.invalid("url", format!("{url:?}: want three slashes, file:///PATH/PLUGIN.wasm")));
    }
    if let Some((scheme, _)) = url.split_once("://") {
        return Err(ParseError::unsupported(format!("{}: {scheme}://", fields.path("url"))));
    }
    if url.starts_with('/') {
        return Ok(format!("file://{url}"));
    }
    match folder(context.origin) {
        Some(folder) if folder.is_absolute() => Ok(format!("file://{}", folder.join(url).display())),
        _ => {
            Err(fields
                .invalid("url", format!("{url:?} is relative, but the object is from no file; want file:///PATH")))
        }
    }
}

fn ports(fields: &mut Fields<'_>) -> Result<Vec<u16>, ParseError> {
    let mut ports = Vec::new();
    let mut every = false;
    for (path, value) in fields.list("match")?.unwrap_or_default() {
        let mut fields = Fields::new(path, value)?;
        match fields.string("mode")? {
            // Plugins see what comes in to a pod.
            None | Some("" | "UNDEFINED" | "SERVER") => {}
            Some(other) => return Err(ParseError::unsupported(format!("{}: {other}", fields.path("mode")))),
        }
        let listed = fields.list("ports")?.unwrap_or_default();
        fields.finish()?;
        every |= listed.is_empty();
        for (path, value) in listed {
            let mut fields = Fields::new(path, value)?;
            let number = fields.integer("number")?.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            ports.push(number.ok_or_else(|| fields.invalid("number", "want 1 to 65535"))?);
            fields.finish()?;
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(if every { Vec::new() } else { ports })
}

fn env(fields: &mut Fields<'_>) -> Result<BTreeMap<String, String>, ParseError> {
    let mut env = BTreeMap::new();
    let Some(config) = fields.take("vmConfig") else { return Ok(env) };
    let mut fields = Fields::new(fields.path("vmConfig"), config)?;
    for (path, value) in fields.list("env")?.unwrap_or_default() {
        let mut fields = Fields::new(path, value)?;
        let name = fields.string("name")?.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| fields.invalid("name", "missing"))?;
        match fields.string("valueFrom")? {
            None | Some("" | "INLINE") => {}
            // A plugin sees nothing of the node.
            Some(other) => return Err(ParseError::unsupported(format!("{}: {other}", fields.path("valueFrom")))),
        }
        let value = fields.string("value")?.unwrap_or_default();
        fields.finish()?;
        env.insert(name.to_owned(), value.to_owned());
    }
    fields.finish()?;
    Ok(env)
}

pub(super) fn peer(object: &Value) -> Result<MeshPeer, ParseError> {
    let mut fields = body(object)?;
    let spec = fields.take("spec").ok_or_else(|| ParseError::invalid("spec", "missing"))?;
    fields.finish()?;
    let mut fields = Fields::new("spec", spec)?;
    let mut need = |field: &str| match fields.string(field)? {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(fields.invalid(field, "missing")),
    };
    let cluster = need("cluster")?;
    let trust_domain = need("trustDomain")?;
    let trust_bundle = need("trustBundle")?;
    let cluster = ClusterName::try_from(cluster).map_err(|problem| fields.invalid("cluster", problem))?;
    let trust_domain = trust_domain
        .parse()
        .map_err(|error: weft_identity::SpiffeError| fields.invalid("trustDomain", error.to_string()))?;
    let cluster_id = match fields.integer("clusterId")? {
        Some(id @ 1..=255) => u32::try_from(id).unwrap_or_default(),
        _ => return Err(fields.invalid("clusterId", "want 1 to 255")),
    };
    let mut endpoints = Vec::new();
    for (path, value) in fields.list("endpoints")?.unwrap_or_default() {
        let endpoint = text(path.clone(), value)?;
        let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(ParseError::invalid(path, format!("{endpoint:?} is not HOST:PORT")));
        }
        endpoints.push(endpoint.to_owned());
    }
    if endpoints.is_empty() {
        return Err(fields.invalid("endpoints", "missing; want at least one HOST:PORT"));
    }
    fields.finish()?;
    Ok(MeshPeer { cluster, cluster_id, trust_domain, trust_bundle, endpoints })
}
