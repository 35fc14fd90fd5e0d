//! Every document of every source. Of several for one object the one from the greatest origin counts; when it goes, the
//! one below counts again.
use super::StoreConfig;
use crate::{
    parse::{self, Context, Fact, Kind, ObjectKey, Origin, Parsed},
    snapshot::ObjectError,
    types::ObjectName,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A document's place: its origin first, so that the last one in order counts.
type Place = (Origin, String);

#[derive(Debug, Default)]
pub(super) struct Documents {
    objects: BTreeMap<ObjectKey, BTreeMap<Place, Document>>,
    /// What each file holds, by source, layer and path.
    files: BTreeMap<(String, u32, String), Held>,
    ignored: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Document {
    fact: Option<Fact>,
    problems: Vec<String>,
}

#[derive(Debug, Default)]
struct Held {
    keys: BTreeSet<(ObjectKey, Origin)>,
    /// Documents that could not even be named.
    unnamed: Vec<ObjectError>,
    ignored: u64,
}

impl Documents {
    pub(super) fn put(
        &mut self,
        config: &StoreConfig,
        source: String,
        origin: Origin,
        object: &Value,
        strict: bool,
        errors: &mut bool,
    ) -> Option<ObjectKey> {
        match read(config, &origin, object, strict) {
            Parsed::Object { key, fact, problems } => {
                self.insert(key.clone(), (origin, source), Document { fact, problems }, errors).then_some(key)
            }
            // A server has no document without a name; what it has of other kinds is not asked for.
            Parsed::Other | Parsed::Unnamed { .. } => None,
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, source: &str, origin: &Origin, errors: &mut bool) -> bool {
        let Some(places) = self.objects.get_mut(key) else { return false };
        let Some(old) = places.remove(&(origin.clone(), source.to_owned())) else { return false };
        *errors |= !old.problems.is_empty();
        if places.is_empty() {
            self.objects.remove(key);
        }
        true
    }

    /// Removes what this source had of the kind and has no more.
    pub(super) fn relisted(
        &mut self,
        source: &str,
        kind: Kind,
        present: &BTreeSet<ObjectName>,
        errors: &mut bool,
    ) -> Vec<ObjectKey> {
        let origin = Origin::server(source);
        let place = (origin.clone(), source.to_owned());
        let gone = self
            .objects
            .iter()
            .filter(|(key, places)| key.kind == kind && !present.contains(&key.name) && places.contains_key(&place));
        let gone: Vec<ObjectKey> = gone.map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.remove(key, source, &origin, errors);
        }
        gone
    }

    /// Makes `objects` what the file holds. Answers the keys that are touched.
    pub(super) fn file(
        &mut self,
        config: &StoreConfig,
        source: &str,
        layer: u32,
        path: &str,
        objects: &[Value],
        errors: &mut bool,
    ) -> BTreeSet<ObjectKey> {
        let id = (source.to_owned(), layer, path.to_owned());
        let old = self.files.remove(&id).unwrap_or_default();
        self.ignored -= old.ignored;
        let mut now = Held::default();
        let mut touched = BTreeSet::new();
        for (document, object) in (1..).zip(objects) {
            let origin = Origin { layer, path: path.to_owned(), document };
            for object in members(object) {
                match read(config, &origin, object, true) {
                    Parsed::Other => now.ignored += 1,
                    Parsed::Unnamed { object, problem } => {
                        now.unnamed.push(ObjectError { origin: origin.to_string(), object, message: problem });
                    }
                    Parsed::Object { key, fact, problems } => {
                        let place = (origin.clone(), source.to_owned());
                        if self.insert(key.clone(), place, Document { fact, problems }, errors) {
                            touched.insert(key.clone());
                        }
                        now.keys.insert((key, origin.clone()));
                    }
                }
            }
        }
        for (key, origin) in old.keys.difference(&now.keys) {
            if self.remove(key, source, origin, errors) {
                touched.insert(key.clone());
            }
        }
        *errors |= old.unnamed != now.unnamed;
        self.ignored += now.ignored;
        if !objects.is_empty() {
            self.files.insert(id, now);
        }
        touched
    }

    /// The fact that counts. A refused document counts as absent.
    pub(super) fn fact(&self, key: &ObjectKey) -> Option<Fact> {
        self.objects.get(key)?.values().rev().find_map(|document| document.fact.clone())
    }

    pub(super) fn errors(&self) -> Vec<ObjectError> {
        let of_objects = self.objects.iter().flat_map(|(key, places)| {
            places.iter().flat_map(move |((origin, _), document)| {
                document.problems.iter().map(move |problem| ObjectError {
                    origin: origin.to_string(),
                    object: key.to_string(),
                    message: problem.clone(),
                })
            })
        });
        of_objects.chain(self.files.values().flat_map(|held| held.unnamed.iter().cloned())).collect()
    }

    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// True: this changes something.
    fn insert(&mut self, key: ObjectKey, place: Place, document: Document, errors: &mut bool) -> bool {
        let places = self.objects.entry(key).or_default();
        let old = places.get(&place);
        if old == Some(&document) {
            return false;
        }
        *errors |= old.map_or(&[][..], |old| &old.problems) != document.problems.as_slice();
        places.insert(place, document);
        true
    }
}

fn read(config: &StoreConfig, origin: &Origin, object: &Value, strict: bool) -> Parsed {
    let context = Context { cluster: &config.cluster, trust_domain: &config.trust_domain, origin, strict };
    parse::parse(object, &context)
}

/// The members of a `List`, or the object itself.
fn members(object: &Value) -> &[Value] {
    match object.get("items") {
        Some(Value::Array(items)) if object.get("kind").and_then(Value::as_str) == Some("List") => items,
        _ => std::slice::from_ref(object),
    }
}
