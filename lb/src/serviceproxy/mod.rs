//! The node's service proxy: ClusterIPs, external IPs and node ports inside the node, by kernel DNAT.
//!
//! [`table`] describes the wanted nftables table by value, [`script`] writes the script from the table in force to it, and
//! [`nft`] runs scripts. This loop owns the table named in the configuration and touches no other. The table stays on
//! shutdown, so that running pods keep reaching their Services; [`cleanup`] removes it.

mod hairpin;
mod items;
mod nft;
mod script;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::snapshot::Snapshot;
pub use nft::NftError;
pub use table::RenderConfig;
use table::Table;

/// First and longest pause before a table that could not be programmed is tried again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Whether bridged packets pass netfilter: `1` if so.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Programs the table `table` for every snapshot until `shutdown`.
pub(crate) async fn run(table: &str, hub: Arc<Hub>, shutdown: CancellationToken) {
    let mut snapshots = hub.subscribe();
    // The empty snapshot before the first list must not take running pods' Services away.
    snapshots.mark_unchanged();
    let mut table_state = Table::default();
    let mut in_force = false;
    let mut wanted_once = false;
    let mut pause = RETRY_MIN;
    let mut warned = false;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        wanted_once |= !snapshot.services.is_empty() || snapshot.node.pod_cidr.is_some();
        let mut failed = false;
        if wanted_once {
            let config = RenderConfig { table: table.to_owned(), bridge_netfilter: bridge_netfilter().await };
            if let Some(pod_cidr) = snapshot.node.pod_cidr.as_deref().filter(|_| config.bridge_netfilter) {
                hairpin::enable(pod_cidr).await;
            }
            match program(&mut table_state, &snapshot, &config, &mut in_force).await {
                Ok(()) => {
                    pause = RETRY_MIN;
                    warned = false;
                }
                Err(error) => {
                    failed = true;
                    pause = (pause * 2).min(RETRY_MAX);
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(error = %report(&error), "ClusterIPs are not reachable on this node; retrying");
                    }
                }
            }
        }
        let retry = async { if failed { tokio::time::sleep(pause).await } else { std::future::pending().await } };
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = retry => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Brings the kernel to `snapshot` in one transaction; from scratch when what was `in_force` is not known, or the difference does
/// not apply (somebody flushed the ruleset).
async fn program(
    table: &mut Table,
    snapshot: &Snapshot,
    config: &RenderConfig,
    in_force: &mut bool,
) -> Result<(), NftError> {
    let difference = table.update(snapshot, config);
    if std::mem::replace(in_force, false) && (difference.is_empty() || nft::apply(&difference).await.is_ok()) {
        *in_force = true;
        return Ok(());
    }
    nft::apply(&table.script()).await?;
    *in_force = true;
    Ok(())
}

/// The script that makes the table for `snapshot` from scratch. Pure.
pub fn render(snapshot: &Snapshot, config: &RenderConfig) -> String {
    Table::default().update(snapshot, config)
}

/// The script from the table of `old` to that of `new`; empty when they are the same. Pure.
pub fn render_change(old: &Snapshot, new: &Snapshot, config: &RenderConfig) -> String {
    let mut table = Table::default();
    table.update(old, config);
    table.update(new, config)
}

/// The script that removes the table `table`, whether or not it is there. Pure.
pub fn render_removal(table: &str) -> String {
    script::removal(table)
}

/// Removes the table `table` if it is there.
pub async fn cleanup(table: &str) -> Result<(), NftError> {
    nft::apply(&render_removal(table)).await
}

async fn bridge_netfilter() -> bool {
    tokio::fs::read_to_string(BRIDGE_NETFILTER).await.is_ok_and(|text| text.trim() == "1")
}

/// An error with its causes in one line.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
