//! The order in which things are told does not matter.
use super::*;

fn events() -> Vec<Event> {
    let policy = "
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{}], authentication: {mode: required}}, {fromCIDR: [10.0.0.0/8, 10.5.0.0/16]}]
";
    let node = "
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 172.16.0.1}]}
";
    vec![
        file("/service.yaml", &global("local")),
        file("/web.yaml", &pod("web", "node-1", "10.1.0.1")),
        file("/db.yaml", &pod("db", "node-2", "10.1.0.2")),
        file("/policy.yaml", policy),
        file("/bad.yaml", "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {type: None}}"),
        file("/namespace.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}"),
        file("/node.yaml", node),
        file("/slice.yaml", &slice("s", "[{addresses: [10.1.0.1], nodeName: node-1}]")),
        // Twice the same object: the later path counts whenever it is told.
        file("/a/service.yaml", &WEB.replace("10.96.0.1", "10.96.0.9")),
        Event::Remote(Box::new(offering("10.9.0.1"))),
    ]
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_change_the_snapshot(
        order in Just((0..events().len()).collect::<Vec<_>>()).prop_shuffle(),
        asked in any::<bool>(),
        passing in proptest::collection::vec(0..events().len(), 0..4),
    ) {
        let mut straight = store(UnsupportedPolicy::FailClosed);
        for event in events() {
            straight.apply(event);
        }

        let mut shuffled = store(UnsupportedPolicy::FailClosed);
        let events = events();
        // Files that come, go, and come again leave no trace.
        for index in passing {
            if let Event::File { source, layer, path, .. } = &events[index] {
                shuffled.apply(events[index].clone());
                let (source, path) = (source.clone(), path.clone());
                shuffled.apply(Event::File { source, layer: *layer, path, objects: Vec::new() });
            }
        }
        for index in order {
            shuffled.apply(events[index].clone());
        }
        if asked {
            // Asking between events may number identities in another order, so only after all.
            shuffled.snapshot();
        }
        prop_assert_eq!(straight.snapshot(), shuffled.snapshot());
    }
}
