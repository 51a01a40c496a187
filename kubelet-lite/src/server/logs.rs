//! `/containerLogs/{namespace}/{pod}/{container}`: a container's log, streamed as it comes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use serde::Deserialize;

use super::{Refusal, generations};
use crate::agent::Agent;
use crate::runtime::{LogOptions, OutputStream};

/// `PodLogOptions`, as the query spells them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Params {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<String>,
    limit_bytes: Option<String>,
    since_seconds: Option<String>,
    since_time: Option<String>,
}

/// What was asked, checked.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    options: LogOptions,
    previous: bool,
    limit_bytes: Option<u64>,
}

fn flag(value: Option<&String>) -> bool {
    value.is_some_and(|v| matches!(v.as_str(), "true" | "1" | "t" | "T" | "True" | "TRUE" | ""))
}

fn number(name: &str, value: Option<&String>) -> Result<Option<u64>, String> {
    let parse =
        |text: &String| text.parse::<u64>().map_err(|_| format!("{name} must be a number of 0 or more: {text:?}"));
    value.filter(|v| !v.is_empty()).map(parse).transpose()
}

impl Params {
    fn check(&self, now: Timestamp) -> Result<Wanted, String> {
        let since_seconds = number("sinceSeconds", self.since_seconds.as_ref())?;
        let since = match (since_seconds, self.since_time.as_deref().filter(|t| !t.is_empty())) {
            (Some(_), Some(_)) => return Err("at most one of sinceSeconds and sinceTime may be given".into()),
            (Some(seconds), None) => {
                let back = Duration::from_secs(seconds);
                Some(now.checked_sub(back).unwrap_or(Timestamp::UNIX_EPOCH))
            }
            (None, Some(text)) => {
                Some(text.parse().map_err(|_| format!("sinceTime must be a time as in RFC 3339: {text:?}"))?)
            }
            (None, None) => None,
        };
        Ok(Wanted {
            options: LogOptions {
                follow: flag(self.follow.as_ref()),
                tail: number("tailLines", self.tail_lines.as_ref())?,
                since,
                timestamps: flag(self.timestamps.as_ref()),
            },
            previous: flag(self.previous.as_ref()),
            limit_bytes: number("limitBytes", self.limit_bytes.as_ref())?,
        })
    }
}

/// The handler.
pub async fn container_logs(
    State(agent): State<Arc<Agent>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(params): Query<Params>,
) -> Result<Response, Refusal> {
    let wanted = params.check(agent.clock.now()).map_err(|e| Refusal(StatusCode::BAD_REQUEST, e))?;
    let generations = generations(&agent, &namespace, &pod, &container).await?;
    let chosen =
        if wanted.previous { generations.iter().skip(1).find(|c| !c.is_running()) } else { generations.first() };
    let Some(chosen) = chosen else {
        let text = format!("previous terminated container {container:?} in pod {pod:?} not found");
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    };
    let log = agent.runtime.logs(&chosen.id, &wanted.options).await?;
    let body = Body::from_stream(limited(log, wanted.limit_bytes));
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

/// The first bytes of a log; what breaks ends it.
fn limited(log: OutputStream, limit: Option<u64>) -> impl Stream<Item = std::io::Result<Bytes>> {
    let left = limit.unwrap_or(u64::MAX);
    futures::stream::unfold((log, left), |(mut log, left)| async move {
        if left == 0 {
            return None;
        }
        match log.next().await? {
            Ok((_, mut bytes)) => {
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - bytes.len() as u64;
                Some((Ok(bytes), (log, left)))
            }
            Err(error) => Some((Err(std::io::Error::other(error)), (log, 0))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::StdStream;

    fn check(query: &[(&str, &str)], want: Result<Wanted, &str>) {
        let some = |name: &str| query.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let params = Params {
            follow: some("follow"),
            previous: some("previous"),
            timestamps: some("timestamps"),
            tail_lines: some("tailLines"),
            limit_bytes: some("limitBytes"),
            since_seconds: some("sinceSeconds"),
            since_time: some("sinceTime"),
        };
        let got = params.check(Timestamp::from_second(1000).unwrap());
        match want {
            Ok(want) => assert_eq!(got, Ok(want)),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?}"),
        }
    }

    #[test]
    fn parameters_are_checked() {
        check(&[], Ok(Wanted::default()));
        let options = LogOptions {
            follow: true,
            tail: Some(0),
            since: Some(Timestamp::from_second(940).unwrap()),
            timestamps: true,
        };
        check(
            &[
                ("follow", "true"),
                ("tailLines", "0"),
                ("sinceSeconds", "60"),
                ("timestamps", "1"),
                ("previous", "true"),
                ("limitBytes", "9"),
            ],
            Ok(Wanted { options, previous: true, limit_bytes: Some(9) }),
        );
        check(&[("tailLines", "-1")], Err("tailLines"));
        check(&[("limitBytes", "x")], Err("limitBytes"));
        check(&[("sinceTime", "yesterday")], Err("sinceTime"));
        check(&[("sinceTime", "2026-01-01T00:00:00Z"), ("sinceSeconds", "1")], Err("at most one"));
    }

    #[tokio::test]
    async fn limits_cut_in_the_middle_of_a_piece() {
        let log = futures::stream::iter(["abc", "def", "ghi"].map(|t| Ok((StdStream::Out, Bytes::from(t))))).boxed();
        let got: Vec<Bytes> = limited(log, Some(5)).map(Result::unwrap).collect().await;
        assert_eq!(got, [Bytes::from("abc"), Bytes::from("de")]);
    }
}
