//! The rules of a Cilium policy: peers, ports, HTTP, authentication.
use super::Reader;
use crate::{
    parse::{ParseError, fields::Fields},
    policy::{HttpRule, PortRange},
    resolve::{PeerSpec, PortSpec, RuleSpec},
    types::Protocol,
};
use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

/// One member of `toPorts`.
struct Ports {
    ports: Vec<PortSpec>,
    http: Option<Vec<HttpRule>>,
}

impl Reader<'_> {
    /// `None`: the direction is not spoken of.
    pub(super) fn rules(
        &self,
        fields: &mut Fields<'_>,
        allow: &str,
        deny: &str,
        ingress: bool,
    ) -> Result<Option<Vec<RuleSpec>>, ParseError> {
        let mut found = None;
        for (field, denies) in [(allow, false), (deny, true)] {
            for (path, rule) in fields.list(field)?.unwrap_or_default() {
                found.get_or_insert_with(Vec::new).extend(self.rule(path, rule, ingress, denies)?);
            }
        }
        Ok(found)
    }

    fn rule(&self, path: String, value: &Value, ingress: bool, deny: bool) -> Result<Vec<RuleSpec>, ParseError> {
        let mut fields = Fields::new(path, value)?;
        let peers = self.peers(&mut fields, if ingress { "from" } else { "to" })?;
        let auth_required = match fields.take("authentication") {
            None => false,
            Some(_) if deny => return Err(ParseError::unsupported(fields.path("authentication"))),
            Some(value) => authentication(fields.path("authentication"), value, ingress)?,
        };
        let to_ports = fields.list("toPorts")?;
        fields.finish()?;
        let mut port_rules = Vec::new();
        for (path, value) in to_ports.into_iter().flatten() {
            port_rules.push(ports(path, value, ingress, deny)?);
        }
        let peers = match (peers, port_rules.is_empty()) {
            (Some(peers), _) => peers,
            (None, false) => vec![PeerSpec::All],
            // An empty rule closes the direction and lets nobody in.
            (None, true) => return Ok(Vec::new()),
        };
        if port_rules.is_empty() {
            port_rules.push(Ports { ports: Vec::new(), http: None });
        }
        let rule = |Ports { ports, http }| RuleSpec { deny, peers: peers.clone(), ports, http, auth_required };
        Ok(port_rules.into_iter().map(rule).collect())
    }

    /// `None`: the rule names no peers at all.
    fn peers(&self, fields: &mut Fields<'_>, side: &str) -> Result<Option<Vec<PeerSpec>>, ParseError> {
        let mut found: Option<Vec<PeerSpec>> = None;
        if let Some(selectors) = fields.list(&format!("{side}Endpoints"))? {
            let peers = found.get_or_insert_default();
            for (path, value) in selectors {
                peers.push(PeerSpec::Labels(self.peer_selector(&path, value)?));
            }
        }
        if let Some(entities) = fields.strings(&format!("{side}Entities"))? {
            let peers = found.get_or_insert_default();
            for (path, name) in entities {
                peers.push(match name {
                    "all" => PeerSpec::All,
                    "world" => PeerSpec::World,
                    "cluster" => PeerSpec::Cluster,
                    "host" => PeerSpec::Host,
                    "remote-node" => PeerSpec::RemoteNode,
                    other => return Err(ParseError::unsupported(format!("{path}: entity {other}"))),
                });
            }
        }
        if let Some(cidrs) = fields.strings(&format!("{side}CIDR"))? {
            let peers = found.get_or_insert_default();
            for (path, text) in cidrs {
                peers.push(PeerSpec::Cidr { net: prefix(&path, text)?, except: Vec::new() });
            }
        }
        if let Some(sets) = fields.list(&format!("{side}CIDRSet"))? {
            let peers = found.get_or_insert_default();
            for (path, value) in sets {
                let mut fields = Fields::new(path, value)?;
                let cidr_path = fields.path("cidr");
                let cidr = fields.string("cidr")?;
                let except = fields.strings("except")?.unwrap_or_default();
                fields.finish()?;
                let cidr = cidr.ok_or_else(|| ParseError::invalid(&cidr_path, "missing"))?;
                let net = prefix(&cidr_path, cidr)?;
                peers.push(PeerSpec::Cidr { net, except: exceptions(net, except)? });
            }
        }
        Ok(found)
    }
}

/// A prefix, or an address alone. Bits beyond the prefix do not count.
pub(in crate::parse) fn prefix(path: &str, text: &str) -> Result<IpNet, ParseError> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip)));
    net.map(|net| net.trunc())
        .map_err(|_| ParseError::invalid(path, format!("{text:?} is not a prefix such as 10.0.0.0/8")))
}

pub(in crate::parse) fn exceptions(net: IpNet, except: Vec<(String, &str)>) -> Result<Vec<IpNet>, ParseError> {
    let hole = |(path, text): (String, &str)| {
        let hole = prefix(&path, text)?;
        if net.contains(&hole) {
            return Ok(hole);
        }
        Err(ParseError::invalid(path, format!("{hole} is not inside {net}")))
    };
    except.into_iter().map(hole).collect()
}

fn authentication(path: String, value: &Value, ingress: bool) -> Result<bool, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let mode = fields.string("mode")?;
    let mode_path = fields.path("mode");
    fields.finish()?;
    match mode {
        Some("required") if ingress => Ok(true),
        Some("disabled") => Ok(false),
        None => Err(ParseError::invalid(mode_path, "missing; want required or disabled")),
        // On the way out, only the other side's own rule can ask for a proof.
        Some(mode) => Err(ParseError::unsupported(format!("{mode_path}: {mode}"))),
    }
}

fn ports(path: String, value: &Value, ingress: bool, deny: bool) -> Result<Ports, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let listed = fields.list("ports")?.unwrap_or_default();
    let http = match fields.take("rules") {
        None => None,
        Some(_) if deny => return Err(ParseError::unsupported(fields.path("rules"))),
        Some(value) => http_rules(fields.path("rules"), value)?,
    };
    let ports_path = fields.path("ports");
    fields.finish()?;
    if http.is_some() && listed.is_empty() {
        return Err(ParseError::invalid(ports_path, "missing; HTTP rules need ports"));
    }
    let read = |(path, value)| port(path, value, ingress, http.is_some());
    let mut ports: Vec<PortSpec> = listed.into_iter().map(read).collect::<Result<_, _>>()?;
    if ports.contains(&EVERY_PORT) {
        ports.clear();
    }
    Ok(Ports { ports, http })
}

/// What `port: "0"` without a protocol says.
const EVERY_PORT: PortSpec = PortSpec::Range(PortRange { protocol: None, first: 0, last: u16::MAX });

fn port(path: String, value: &Value, ingress: bool, http: bool) -> Result<PortSpec, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let text = match fields.take("port") {
        None => return Err(fields.invalid("port", "missing")),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(_) => return Err(fields.invalid("port", "want a number or a name, in quotes")),
    };
    let protocol = match fields.string("protocol")?.map(str::to_ascii_uppercase).as_deref() {
        None | Some("" | "ANY") => None,
        Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => return Err(ParseError::unsupported(format!("{}: {other}", fields.path("protocol")))),
    };
    let end = fields.integer("endPort")?;
    let protocol = match protocol {
        None if http => Some(Protocol::Tcp),
        Some(other) if http && other != Protocol::Tcp => {
            return Err(fields.invalid("protocol", "HTTP rules are for TCP only"));
        }
        protocol => protocol,
    };
    let spec = match text.parse::<u16>() {
        Ok(0) if end.unwrap_or(0) != 0 => return Err(fields.invalid("port", "0 means all ports; it takes no endPort")),
        Ok(0) => PortSpec::Range(PortRange { protocol, first: 0, last: u16::MAX }),
        Ok(first) => match end {
            None | Some(0) => PortSpec::Range(PortRange { protocol, first, last: first }),
            Some(end) => match u16::try_from(end) {
                Ok(last) if last >= first => PortSpec::Range(PortRange { protocol, first, last }),
                _ => return Err(fields.invalid("endPort", format!("{end} is not a port from {first} to 65535"))),
            },
        },
        Err(_) if text.is_empty() || text.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(fields.invalid("port", format!("{text:?} is not a port; want 0 to 65535")));
        }
        // The name is the other pod's on the way out, and each may give it another number.
        Err(_) if !ingress => return Err(ParseError::unsupported(format!("{}: name {text}", fields.path("port")))),
        Err(_) if end.is_some_and(|end| end != 0) => return Err(fields.invalid("endPort", "a named port takes none")),
        Err(_) => PortSpec::Name { name: text, protocol },
    };
    fields.finish()?;
    Ok(spec)
}

fn http_rules(path: String, value: &Value) -> Result<Option<Vec<HttpRule>>, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let list = fields.list("http")?.filter(|rules| !rules.is_empty());
    fields.finish()?;
    let Some(list) = list else { return Ok(None) };
    list.into_iter().map(|(path, value)| http_rule(path, value)).collect::<Result<_, _>>().map(Some)
}

fn http_rule(path: String, value: &Value) -> Result<HttpRule, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let mut regex = |field: &str| match fields.string(field)? {
        None | Some("") => Ok(None),
        Some(text) => match Regex::new(&format!("^(?:{text})$")) {
            Ok(_) => Ok(Some(text.to_owned())),
            // The whole message draws the expression on several lines; its last says what is wrong.
            Err(error) => {
                let error = error.to_string();
                let problem = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Err(fields.invalid(field, format!("{text:?} is not a regular expression: {problem}")))
            }
        },
    };
    let (method, path, host) = (regex("method")?, regex("path")?, regex("host")?);
    let mut headers = Vec::new();
    for (path, header) in fields.strings("headers")?.unwrap_or_default() {
        let name = header.split_once(':').map_or(header, |(name, _)| name);
        // RFC 9110, 5.6.2
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(ParseError::invalid(path, format!("{header:?}: want \"Name: value\", or a name alone")));
        }
        headers.push(header.to_owned());
    }
    fields.finish()?;
    Ok(HttpRule { method, path, host, headers })
}
