//! The gRPC services over a `View`: reads are answered from the store, writes refused, and the rest is as little as clients
//! are content with.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

use super::{
    View, status,
    store::{KeySpan, Store},
    watch::WatchStream,
};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::*;
use crate::pb::mvccpb::KeyValue;

/// An etcd release that old and new clients know.
const VERSION: &str = "3.6.5";
const LEASE_TTL_SECONDS: i64 = 60;
const RESPONSES_IN_FLIGHT: usize = 4;

pub(super) fn services(mut server: tonic::transport::Server, view: View) -> Router {
    server
        .add_service(kv_server::KvServer::new(view.clone()))
        .add_service(watch_server::WatchServer::new(view.clone()))
        .add_service(lease_server::LeaseServer::new(view.clone()))
        .add_service(cluster_server::ClusterServer::new(view.clone()))
        .add_service(maintenance_server::MaintenanceServer::new(view.clone()))
        .add_service(auth_server::AuthServer::new(view))
}

impl View {
    fn header_now(&self) -> Option<ResponseHeader> {
        self.header(self.store().revision())
    }

    fn header_only(&self) -> Result<Response<HeaderOnly>, Status> {
        Ok(Response::new(HeaderOnly { header: self.header_now() }))
    }
}

#[tonic::async_trait]
impl kv_server::Kv for View {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(status::empty_key());
        }
        let store = self.store();
        Ok(Response::new(read(&store, request, self.header(store.revision()))?))
    }

    async fn put(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        Err(status::read_only())
    }

    async fn delete_range(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        Err(status::read_only())
    }

    async fn txn(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        Err(status::read_only())
    }

    async fn compact(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        Err(status::read_only())
    }
}

/// Limit and filters choose what is sent; `count` is of the whole span all the same.
fn read(store: &Store, request: RangeRequest, header: Option<ResponseHeader>) -> Result<RangeResponse, Status> {
    let order = SortOrder::try_from(request.sort_order).map_err(|_| status::invalid_sort_option())?;
    let target = SortTarget::try_from(request.sort_target).map_err(|_| status::invalid_sort_option())?;
    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let in_key_order = order != SortOrder::Descend && target == SortTarget::Key;

    let (mut kvs, mut count, mut wanted) = (Vec::new(), 0, 0);
    let span = KeySpan::from_wire(request.key.clone(), request.range_end.clone());
    for kv in store.range(&span, request.revision)? {
        count += 1;
        if !request.count_only && has_wanted_revisions(kv, &request) {
            wanted += 1;
            if !in_key_order || wanted <= limit {
                kvs.push(kv.clone());
            }
        }
    }
    match target {
        SortTarget::Key => {} // it comes in key order
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if order == SortOrder::Descend {
        kvs.reverse();
    }
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    Ok(RangeResponse { header, more: wanted > kvs.len(), kvs, count })
}

fn has_wanted_revisions(kv: &KeyValue, request: &RangeRequest) -> bool {
    let within = |revision, min, max| revision >= min && (max == 0 || revision <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

#[tonic::async_trait]
impl watch_server::Watch for View {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(RESPONSES_IN_FLIGHT);
        tokio::spawn(WatchStream::new(self.clone(), responses).run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Older agents open a session before they read. Nothing depends on a lease here: each is granted, and lives on.
#[tonic::async_trait]
impl lease_server::Lease for View {
    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        static NEXT_ID: AtomicI64 = AtomicI64::new(1);
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        let id = if id == 0 { NEXT_ID.fetch_add(1, Ordering::Relaxed) } else { id };
        Ok(Response::new(LeaseGrantResponse { header: self.header_now(), id, ttl }))
    }

    async fn lease_revoke(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        self.header_only()
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (responses, stream) = mpsc::channel(RESPONSES_IN_FLIGHT);
        let (view, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let stopped = view.clone().unpublished();
            tokio::pin!(stopped);
            while let Ok(Some(LeaseKeepAliveRequest { id })) = tokio::select! {
                request = requests.message() => request,
                () = &mut stopped => return,
            } {
                let answer = LeaseKeepAliveResponse { header: view.header_now(), id, ttl: LEASE_TTL_SECONDS };
                if responses.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for View {
    async fn member_list(&self, _: Request<Ignored>) -> Result<Response<MemberListResponse>, Status> {
        let member = Member {
            id: self.member.member_id,
            name: self.member.name.clone(),
            client_ur_ls: self.member.client_urls.clone(),
            ..Default::default()
        };
        Ok(Response::new(MemberListResponse { header: self.header(0), members: vec![member] }))
    }
}

#[tonic::async_trait]
impl maintenance_server::Maintenance for View {
    async fn status(&self, _: Request<Ignored>) -> Result<Response<StatusResponse>, Status> {
        let store = self.store();
        let (revision, bytes) = (store.revision(), store.key_bytes() as i64);
        Ok(Response::new(StatusResponse {
            header: self.header(revision),
            version: VERSION.to_owned(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader: self.member.member_id,
            raft_index: revision as u64,
            raft_applied_index: revision as u64,
            raft_term: 1,
        }))
    }

    async fn alarm(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        self.header_only() // no alarm is ever raised
    }
}

#[tonic::async_trait]
impl auth_server::Auth for View {
    async fn auth_status(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        self.header_only() // 'enabled' is absent: off
    }

    async fn authenticate(&self, _: Request<Ignored>) -> Result<Response<HeaderOnly>, Status> {
        Err(status::auth_not_enabled())
    }
}
