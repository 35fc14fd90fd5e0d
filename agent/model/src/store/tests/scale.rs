//! How long it takes with many objects. Printed, not judged: machines differ.
use super::*;
use std::time::Instant;

#[test]
fn ten_thousand_services_and_pods_are_taken_in() {
    let service = &yaml(WEB)[0];
    let template = &yaml(&pod("web", "node-1", "10.1.0.1"))[0];
    let named = |object: &serde_json::Value, index: usize| {
        let mut object = object.clone();
        object["metadata"]["name"] = format!("x-{index}").into();
        object
    };
    let mut objects: Vec<serde_json::Value> = Vec::new();
    for index in 0..10_000 {
        let mut service = named(service, index);
        service["spec"]["clusterIP"] = format!("10.96.{}.{}", index / 250, index % 250).into();
        service["spec"]["selector"]["app"] = format!("app-{index}").into();
        let mut pod = named(template, index);
        pod["metadata"]["labels"]["app"] = format!("app-{index}").into();
        pod["status"]["podIPs"][0]["ip"] = format!("10.1.{}.{}", index / 250, index % 250).into();
        objects.extend([service, pod]);
    }
    let mut store = store(UnsupportedPolicy::FailClosed);
    let start = Instant::now();
    for object in &objects {
        store.apply(Event::Upsert { source: "kubernetes".into(), object: object.clone() });
    }
    let applied = start.elapsed();
    let first = store.snapshot();
    let built = start.elapsed() - applied;
    objects[1]["status"]["conditions"][0]["status"] = "False".into();
    let start = Instant::now();
    store.apply(Event::Upsert { source: "kubernetes".into(), object: objects[1].clone() });
    let second = store.snapshot();
    println!("20,000 objects: applied in {applied:?}, snapshot in {built:?}, after one change {:?}", start.elapsed());
    assert_eq!(first.services.values().filter(|view| view.backends.len() == 1).count(), 10_000);
    assert_eq!(second.workloads.len(), 10_000);
    assert!(!second.services[&name("shop/x-0")].backends[0].ready);
}
