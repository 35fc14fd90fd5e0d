//! Real handshakes in memory, and the CA's folder.
use super::*;
use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, SystemTime},
};

const HOUR: Duration = Duration::from_secs(3600);

struct Cluster {
    ca: ClusterCa,
    _dir: tempfile::TempDir,
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn cluster(trust_domain: &str) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    Cluster { ca: ClusterCa::load_or_create(&dir.path().join("ca"), &domain(trust_domain)).unwrap(), _dir: dir }
}

impl Cluster {
    fn svid(&self, namespace: &str, account: &str) -> Svid {
        let id = SpiffeId::new(self.ca.trust_domain().clone(), namespace, account);
        self.ca.issue(&id, HOUR, SystemTime::now()).unwrap()
    }
}

fn shared(svid: &Svid) -> SharedIdentity {
    SharedIdentity::new(Identity::try_from(svid).unwrap())
}

fn bundles(clusters: &[&Cluster]) -> TrustBundles {
    TrustBundles::from_pem(clusters.iter().map(|c| (c.ca.trust_domain(), c.ca.bundle_pem()))).unwrap()
}

/// A server and a client with all they were told.
struct Pair {
    server: (SharedIdentity, TrustBundles, ExpectedId),
    client: (SharedIdentity, TrustBundles, ExpectedId),
}

/// What each end saw: the other's ID.
#[derive(Debug, PartialEq)]
struct Seen {
    by_server: SpiffeId,
    by_client: SpiffeId,
}

impl Pair {
    fn shake(&self) -> Result<Seen, rustls::Error> {
        let (identity, bundles, callers) = &self.server;
        let server = server_config(identity, bundles, callers.clone(), &[b"h2"]).unwrap();
        let (identity, bundles, expected) = &self.client;
        let client = client_config(identity, bundles, expected.clone(), &[b"h2"]).unwrap();
        shake(server, client)
    }
}

fn shake(server: Arc<rustls::ServerConfig>, client: Arc<rustls::ClientConfig>) -> Result<Seen, rustls::Error> {
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = vec![];
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets()?;
        let mut wire = vec![];
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    Ok(Seen {
        by_server: peer_spiffe_id(server.peer_certificates().unwrap()).unwrap(),
        by_client: peer_spiffe_id(client.peer_certificates().unwrap()).unwrap(),
    })
}

/// East's frontend calls west's backend; each knows both trust domains.
fn east_calls_west(east: &Cluster, west: &Cluster) -> Pair {
    let known = bundles(&[east, west]);
    Pair {
        server: (shared(&west.svid("shop", "backend")), known.clone(), ExpectedId::Known),
        client: (
            shared(&east.svid("shop", "frontend")),
            known,
            ExpectedId::Exact(id("spiffe://west/ns/shop/sa/backend")),
        ),
    }
}

#[test]
fn two_clusters_with_cas_of_their_own_see_each_others_ids() {
    let (east, west) = (cluster("east"), cluster("west"));
    let seen =
        Seen { by_server: id("spiffe://east/ns/shop/sa/frontend"), by_client: id("spiffe://west/ns/shop/sa/backend") };
    assert_eq!(east_calls_west(&east, &west).shake(), Ok(seen));
}

#[test]
fn a_trust_domain_that_is_not_connected_is_refused_by_name() {
    let (east, west) = (cluster("east"), cluster("west"));
    let pair = east_calls_west(&east, &west);
    pair.server.1.replace([(west.ca.trust_domain(), west.ca.bundle_pem())]).unwrap();
    let error = pair.shake().unwrap_err();
    assert!(explain(&error).contains("trust domain east is not known here"), "{}", explain(&error));
}

#[test]
fn a_rogue_ca_with_the_same_name_is_refused_at_both_ends() {
    let (east, west, rogue) = (cluster("east"), cluster("west"), cluster("east"));
    let mut pair = east_calls_west(&east, &west);
    pair.client.0 = shared(&rogue.svid("shop", "frontend"));
    assert!(matches!(pair.shake(), Err(rustls::Error::InvalidCertificate(_))));

    let rogue = cluster("west");
    let mut pair = east_calls_west(&east, &west);
    pair.server.0 = shared(&rogue.svid("shop", "backend"));
    assert!(matches!(pair.shake(), Err(rustls::Error::InvalidCertificate(_))));
}

/// Both CAs are trusted, but each for its own trust domain only.
#[test]
fn a_known_ca_cannot_vouch_for_another_trust_domain() {
    let (east, west) = (cluster("east"), cluster("west"));
    let forged = ClusterCa::forged(&west.ca, &domain("east"));
    let mut pair = east_calls_west(&east, &west);
    let svid = forged.issue(&id("spiffe://east/ns/shop/sa/frontend"), HOUR, SystemTime::now()).unwrap();
    pair.client.0 = shared(&svid);
    assert!(matches!(pair.shake(), Err(rustls::Error::InvalidCertificate(_))));
}

#[test]
fn an_svid_that_has_ended_is_refused_and_its_successor_taken_without_a_new_configuration() {
    let (east, west) = (cluster("east"), cluster("west"));
    let pair = east_calls_west(&east, &west);
    let (identity, bundles, expected) = &pair.client;
    let client = client_config(identity, bundles, expected.clone(), &[b"h2"]).unwrap();
    let (server_identity, bundles, callers) = &pair.server;
    let server = server_config(server_identity, bundles, callers.clone(), &[b"h2"]).unwrap();

    let name = id("spiffe://east/ns/shop/sa/frontend");
    let old = east.ca.issue(&name, HOUR, SystemTime::now() - 2 * HOUR).unwrap();
    identity.replace(Identity::try_from(&old).unwrap());
    let error = shake(server.clone(), client.clone()).unwrap_err();
    assert!(explain(&error).contains("expired"), "{}", explain(&error));

    identity.replace(Identity::try_from(&east.svid("shop", "frontend")).unwrap());
    shake(server, client).unwrap();
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (east, west) = (cluster("east"), cluster("west"));
    let pair = east_calls_west(&east, &west);
    let (identity, bundles, callers) = &pair.server;
    let server = server_config(identity, bundles, callers.clone(), &[b"h2"]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    roots.add(CertificateDer::from_pem_slice(west.ca.bundle_pem().as_bytes()).unwrap()).unwrap();
    let verifier = Arc::new(peer::PeerVerifier {
        bundles: pair.client.1.clone(),
        expected: ExpectedId::Known,
        provider: tls::provider(),
    });
    let mut client = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(shake(server, Arc::new(client)), Err(rustls::Error::NoCertificatesPresented));
}

#[test]
fn a_peer_with_a_good_certificate_and_another_name_is_refused() {
    let (east, west) = (cluster("east"), cluster("west"));
    let mut pair = east_calls_west(&east, &west);
    pair.client.2 = ExpectedId::Exact(id("spiffe://west/ns/shop/sa/other"));
    let error = explain(&pair.shake().unwrap_err());
    assert!(
        error.contains("the peer is spiffe://west/ns/shop/sa/backend, expected spiffe://west/ns/shop/sa/other"),
        "{error}"
    );
    let agents = ExpectedId::ServiceAccount { namespace: "weft-system".into(), service_account: "weft-agent".into() };
    pair.client.2 = ExpectedId::Known;
    pair.server.2 = agents.clone();
    assert!(pair.shake().is_err());
    pair.client.0 = shared(&east.svid("weft-system", "weft-agent"));
    pair.shake().unwrap();
}

#[test]
fn each_kind_of_expectation_admits_what_it_says() {
    let (east, west) = (id("spiffe://east/ns/a/sa/b"), id("spiffe://west/ns/a/sa/b"));
    let both = |expected: ExpectedId| (expected.admits(&east), expected.admits(&west));
    assert_eq!(both(ExpectedId::Exact(east.clone())), (true, false));
    assert_eq!(both(ExpectedId::AnyOf(BTreeSet::from([west.clone()]))), (false, true));
    assert_eq!(both(ExpectedId::AnyOf(BTreeSet::new())), (false, false));
    assert_eq!(both(ExpectedId::TrustDomainMember(domain("east"))), (true, false));
    let account = |account: &str| ExpectedId::ServiceAccount { namespace: "a".into(), service_account: account.into() };
    assert_eq!(both(account("b")), (true, true));
    assert_eq!(both(account("c")), (false, false));
}

#[test]
fn a_bundle_that_is_not_pem_changes_nothing() {
    let east = cluster("east");
    let known = bundles(&[&east]);
    let west = domain("west");
    for wrong in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let error = known.replace([(&west, wrong)]).unwrap_err();
        assert!(error.to_string().starts_with("the trust bundle of west is not usable"), "{error}");
    }
    assert_eq!(known.trust_domains(), [domain("east")]);
}

#[test]
fn processes_that_start_at_once_agree_on_one_ca() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/ca");
    let load = || ClusterCa::load_or_create(&path, &domain("east")).unwrap().bundle_pem().to_owned();
    let seen: BTreeSet<String> = std::thread::scope(|s| {
        (0..8).map(|_| s.spawn(load)).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(seen.len(), 1);
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode(KEY_FILE)), (0o700, 0o600));
}

#[test]
fn what_is_wrong_with_the_folder_is_said_with_its_remedy() {
    let east = domain("east");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca");
    let load = |domain: &TrustDomain| ClusterCa::load_or_create(&path, domain).map(|ca| ca.bundle_pem().to_owned());
    let says = |domain: &TrustDomain, wanted: &str| {
        let error = load(domain).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} does not say {wanted:?}");
    };
    let key = path.join(KEY_FILE);
    let chmod = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    load(&east).unwrap();

    chmod(&key, 0o640);
    says(&east, &format!("chmod 0600 {}", key.display()));
    chmod(&key, 0o600);
    chmod(&path, 0o777);
    says(&east, &format!("chmod 0700 {}", path.display()));
    chmod(&path, 0o700);
    says(&domain("west"), "is the CA of trust domain east, but this cluster's is west");

    let saved = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    says(&east, "restore the key");
    fs::write(&key, "garbage").unwrap();
    chmod(&key, 0o600);
    says(&east, "is not usable as the cluster's CA");
    fs::write(&key, saved).unwrap();
    fs::remove_file(path.join(CERTIFICATE_FILE)).unwrap();
    load(&east).expect("a crash between the two files is repaired");
}

#[test]
fn a_ca_issues_only_for_its_own_trust_domain_and_within_its_own_life() {
    let east = cluster("east");
    let now = SystemTime::now();
    let error = east.ca.issue(&id("spiffe://west/ns/a/sa/b"), HOUR, now).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot make a certificate for spiffe://west/ns/a/sa/b: this CA is of trust domain east"
    );
    let svid = east.ca.issue(&id("spiffe://east/ns/a/sa/b"), 20 * 365 * 24 * HOUR, now).unwrap();
    assert!(svid.not_after < now + 11 * 365 * 24 * HOUR);
    assert!(svid.not_before <= now - Duration::from_secs(60));
    let late = now + 11 * 365 * 24 * HOUR;
    assert!(matches!(east.ca.issue(&id("spiffe://east/ns/a/sa/b"), HOUR, late), Err(CaError::Ended)));
}

#[test]
fn a_server_certificate_has_names_for_clients_that_know_no_spiffe() {
    let east = cluster("east");
    let agent = id("spiffe://east/ns/weft-system/sa/weft-agent");
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let svid =
        east.ca.issue_server(&agent, "remote", &["*.mesh.cilium.io"], &addresses, HOUR, SystemTime::now()).unwrap();
    assert_eq!(Identity::try_from(&svid).unwrap().spiffe_id(), &agent);
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let der = CertificateDer::from_pem_slice(svid.certificates_pem.as_bytes()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=remote");
    assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 3);
}

#[test]
fn debug_never_shows_a_key() {
    let svid = cluster("east").svid("a", "b");
    let text = format!("{svid:?}{:?}", Identity::try_from(&svid).unwrap());
    assert!(!text.contains("PRIVATE") && text.contains("service_account: \"b\""), "{text}");
}
