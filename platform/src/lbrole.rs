//! `scaleup lb`: the load balancer in a process of its own, which a new one can replace without a refused connection.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scaleup_plugins::World;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alone::{client, drain, first_end, registered, with_metrics};
use crate::cli::{ClientArgs, LbRoleArgs};
use crate::handover::{self, Offer, Predecessor};
use crate::plugins::Plugins;
use crate::{cli, lbtool, preflight, process, roles, views};

/// Where sockets are without a directory for them in the environment.
const RUN: &str = "/run";

/// `scaleup lb`
pub async fn run(args: LbRoleArgs, shutdown: CancellationToken) -> Result<()> {
    if let Some(tool) = args.tool {
        return lbtool::run(tool, shutdown).await;
    }
    let kubeconfig = args.kubeconfig.context("--kubeconfig is missing; make one with: scaleup kubeconfig")?;
    let (client, _) = client(&ClientArgs { kubeconfig }).await?;
    let node = roles::node_name(args.node_name.as_ref());
    let path = args.handover_socket.clone().unwrap_or_else(|| default_socket(&node));
    let mut registry = process::registry();
    let plugins = Plugins::new(&args.plugins, &cli::default_data_dir())?;
    plugins.register(&mut registry);
    let config = roles::lb(&args.lb, &node, preflight::primary_address(), &args.service_cidr, &plugins);
    let lb = scaleup_lb::build(config, &mut registry);
    let views = views::router(views::Source::Here(lb.clone()));
    // The old process keeps serving until we do: what can fail has not failed by now.
    let predecessor = if args.replace { Predecessor::take(&path).await? } else { None };

    let (side_stop, lb_stop) = (CancellationToken::new(), CancellationToken::new());
    let (mut side, mut traffic) = (JoinSet::new(), JoinSet::new());
    let loading = plugins.load(client.clone(), &[World::Routing], format!("lb/{node}"), side_stop.clone());
    side.spawn(async move {
        loading.await;
        ("plugin loader", Ok(()))
    });
    let (lb_client, stop) = (client.clone(), lb_stop.clone());
    let serving =
        handover::start(lb.clone(), predecessor, &mut traffic, |lb| async move { lb.run(lb_client, stop).await });
    shutdown.run_until_cancelled(serving).await;
    // The entry in the view of components, and metrics: a successor has its own.
    let stop = side_stop.clone();
    side.spawn(async move {
        let idle = async {
            stop.cancelled().await;
            Ok(())
        };
        let beside = registered(client, "lb", node, None, stop.clone(), idle);
        ("metrics", with_metrics(args.metrics_listen, registry, views, stop.clone(), beside).await)
    });

    let offer = offer(&path, lb, args.handover_socket.is_some())?;
    let mut successor = None;
    let outcome = tokio::select! {
        ended = first_end(&shutdown, &mut traffic, &mut side) => ended,
        asked = asked(offer.as_ref()) => {
            successor = Some(asked);
            Ok(())
        }
    };
    if successor.is_none() {
        lb_stop.cancel();
    }
    side_stop.cancel();
    let side_ended = drain(&mut side).await;
    if let (Some(successor), Some(offer)) = (successor, offer) {
        handover::finish(successor, &offer, &shutdown).await;
        lb_stop.cancel();
    }
    let traffic_ended = drain(&mut traffic).await;
    outcome.and(side_ended).and(traffic_ended)
}

/// Lets a successor come. A place that nobody has chosen may not be ours to write to: then there is no successor.
fn offer(path: &Path, lb: scaleup_lb::Lb, chosen: bool) -> Result<Option<Offer>> {
    match Offer::open(path, lb) {
        Ok(offer) => Ok(Some(offer)),
        Err(error) if chosen => Err(error),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::info!(error, "this load balancer cannot be replaced in place; choose another --handover-socket");
            Ok(None)
        }
    }
}

async fn asked(offer: Option<&Offer>) -> handover::Successor {
    match offer {
        Some(offer) => offer.asked().await,
        None => std::future::pending().await,
    }
}

fn default_socket(node: &str) -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from(RUN), PathBuf::from);
    dir.join(format!("scaleup-lb-{node}.sock"))
}
