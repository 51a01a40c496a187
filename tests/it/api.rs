//! The API through kubectl and raw HTTPS: verbs, watches, selectors, discovery.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "api", health_and_version]
}

async fn health_and_version(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let anonymous = cluster.anonymous()?;
    for path in ["/livez", "/readyz", "/healthz"] {
        let answer = anonymous.get(path).await?;
        ensure!(answer.text == "ok", "{path}: {}", answer.text);
    }
    let version = anonymous.get("/version").await?.ok()?;
    ensure!(
        version["major"] == "1" && version["gitVersion"].as_str().is_some_and(|v| v.starts_with("v1.33")),
        "{version}"
    );
    let refused = anonymous.get("/api/v1/namespaces").await?;
    ensure!(refused.status == 403 || refused.status == 401, "{}", refused.status);
    Ok(())
}
