//! Addresses of pods that the CNI plugin knows before the pod's own object does. Without them a new pod would have no
//! identity until its status is written, and its first packets would be dropped.
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_model::{parse::Kind, store::Event, types::ObjectName};

/// Above all folders.
const LAYER: u32 = u32::MAX;
const SOURCE: &str = "cni";

#[derive(Default)]
pub struct PodOverlay {
    node: String,
    /// The last object of each pod that names no address (yet).
    without_address: BTreeMap<ObjectName, Value>,
    /// Pods whose object names an address, by the file or server that says so.
    addressed: BTreeMap<String, BTreeSet<ObjectName>>,
    connected: BTreeMap<ObjectName, Vec<IpAddr>>,
}

impl PodOverlay {
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// Looks at an event of a source; answers what the store must hear beside it.
    pub fn see(&mut self, event: &Event) -> Vec<Event> {
        let mut touched = BTreeSet::new();
        match event {
            Event::Upsert { source, object } => {
                let addressed = self.addressed.entry(source.clone()).or_default();
                if let Some((name, has_address)) = pod(object) {
                    if has_address {
                        addressed.insert(name.clone());
                        self.without_address.remove(&name);
                    } else {
                        addressed.remove(&name);
                    }
                    self.keep(&name, has_address, object);
                    touched.insert(name);
                }
            }
            Event::File { path, objects, .. } => {
                let mut now = BTreeSet::new();
                for object in objects {
                    if let Some((name, has_address)) = pod(object) {
                        if has_address {
                            now.insert(name.clone());
                        }
                        self.keep(&name, has_address, object);
                        touched.insert(name);
                    }
                }
                touched.extend(self.addressed.insert(path.clone(), now).unwrap_or_default());
            }
            Event::Delete { key, source } if key.kind == Kind::Pod => {
                self.without_address.remove(&key.name);
                self.addressed.entry(source.clone()).or_default().remove(&key.name);
                touched.insert(key.name.clone());
            }
            _ => {}
        }
        touched.into_iter().filter(|name| self.connected.contains_key(name)).map(|name| self.cover(&name)).collect()
    }

    fn keep(&mut self, name: &ObjectName, has_address: bool, object: &Value) {
        if !has_address {
            self.without_address.insert(name.clone(), object.clone());
        }
    }

    pub fn connected(&mut self, pod: &ObjectName, addresses: &[IpAddr]) -> Vec<Event> {
        self.connected.insert(pod.clone(), addresses.to_vec());
        vec![self.cover(pod)]
    }

    pub fn disconnected(&mut self, pod: &ObjectName) -> Vec<Event> {
        self.connected.remove(pod);
        vec![self.cover(pod)]
    }

    /// The pod's object with its address, or nothing where its object says enough.
    fn cover(&self, name: &ObjectName) -> Event {
        let said = self.addressed.values().any(|pods| pods.contains(name));
        let covered =
            self.connected.get(name).filter(|_| !said).zip(self.without_address.get(name)).map(|(addresses, pod)| {
                let mut pod = pod.clone();
                pod["spec"]["nodeName"] = json!(self.node);
                let mut status = pod.get("status").cloned().unwrap_or_else(|| json!({}));
                status["podIP"] = json!(addresses.first());
                status["podIPs"] = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
                pod["status"] = status;
                pod
            });
        let objects = covered.into_iter().collect();
        Event::File { source: SOURCE.to_owned(), layer: LAYER, path: name.to_string(), objects }
    }
}

/// A pod's name, and whether its object names its address.
fn pod(object: &Value) -> Option<(ObjectName, bool)> {
    if object.get("kind")? != "Pod" {
        return None;
    }
    let metadata = object.get("metadata")?;
    let name = ObjectName::new(metadata.get("namespace")?.as_str()?, metadata.get("name")?.as_str()?);
    let has_address = object.pointer("/status/podIP").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty());
    Some((name, has_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str, status: Value) -> Event {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {}, "status": status,
        });
        Event::File { source: "directory".into(), layer: 0, path: path.into(), objects: vec![object] }
    }

    fn addresses(events: &[Event]) -> Vec<Option<Value>> {
        events
            .iter()
            .map(|event| match event {
                Event::File { objects, .. } => objects.first().map(|pod| pod["status"]["podIP"].clone()),
                _ => panic!("an overlay is a file"),
            })
            .collect()
    }

    #[test]
    fn a_pod_has_its_address_from_the_cni_plugin_until_its_status_names_it() {
        let name = ObjectName::new("shop", "a");
        let mut overlay = PodOverlay::new("node");
        assert!(overlay.see(&told("manifest", json!({}))).is_empty());
        let ip: IpAddr = "10.1.0.2".parse().unwrap();
        assert_eq!(addresses(&overlay.connected(&name, &[ip])), [Some(json!("10.1.0.2"))]);
        assert_eq!(addresses(&overlay.see(&told("status", json!({"podIP": "10.1.0.2"})))), [None]);
        assert_eq!(addresses(&overlay.see(&told("manifest", json!({"phase": "edited"})))), [None]);
        let gone = Event::File { source: "directory".into(), layer: 1, path: "status".into(), objects: vec![] };
        assert_eq!(addresses(&overlay.see(&gone)), [Some(json!("10.1.0.2"))]);
        assert_eq!(addresses(&overlay.disconnected(&name)), [None]);
    }
}
