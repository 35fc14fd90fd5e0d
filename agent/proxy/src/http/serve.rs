//! One connection of an HTTP client: its requests, until it ends, its server ends or the proxy stops.
use super::{
    exchange::{Context, respond},
    head_timer::{HeadTimer, Heads},
    sniff::Kind,
    upstream::Upstream,
};
use crate::{conn::Conn, stream::BoxStream};
use hyper::{rt::Executor, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{pin::pin, rc::Rc, time::Duration};

pub const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 200;
const HEAD_TIME: Duration = Duration::from_secs(10);
const STREAMS: u32 = 200;
const WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const PING: Duration = Duration::from_secs(60);

/// Runs futures on the worker's own thread. They end with the connection that spawned them.
#[derive(Clone)]
pub struct Local;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// `server`: a connection that is open already.
pub async fn serve(conn: Rc<Conn>, kind: Kind, client: BoxStream, server: Option<BoxStream>) {
    let stop = conn.worker.shared.stop.clone();
    let context =
        Rc::new(Context { upstream: Upstream::new(conn.clone(), kind, server), conn, heads: Heads::default() });
    let service = {
        let context = context.clone();
        service_fn(move |request| respond(context.clone(), request))
    };
    let ended = async {
        tokio::select! { () = stop.cancelled() => {}, () = context.upstream.closed() => {} }
    };
    let done = match kind {
        Kind::Http2 => {
            let connection = conn::http2::Builder::new(Local)
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEAD as u32)
                .keep_alive_interval(PING)
                .auto_date_header(false)
                .serve_connection(TokioIo::new(client), service);
            let mut connection = pin!(connection);
            tokio::select! {
                done = connection.as_mut() => done,
                () = ended => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Kind::Http1 | Kind::Other => {
            let client = HeadTimer::new(client, context.heads.clone(), HEAD_TIME);
            let connection = conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_headers(MAX_HEADERS)
                .max_header_size(MAX_HEAD)
                .preserve_header_case(true)
                .auto_date_header(false)
                .half_close(true)
                .serve_connection(TokioIo::new(client), service)
                .with_upgrades();
            let mut connection = pin!(connection);
            tokio::select! {
                done = connection.as_mut() => done,
                () = ended => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    context.finished(done.err());
}
