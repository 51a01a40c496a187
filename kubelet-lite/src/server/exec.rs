//! `/exec` and `/attach` over WebSocket, protocols `v5.channel.k8s.io` and `v4.channel.k8s.io`
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand/websocket.go`).
//!
//! Every message begins with a channel byte: 0 standard input, 1 output, 2 error, 3 a `Status` at the end, 4 terminal size.
//! In v5, channel 255 closes the channel its second byte names, which is how end of input is told. Nothing is buffered: a
//! client that does not read holds up the container's output, and a container that does not read its input holds up the
//! client, each without holding up the other direction.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{Refusal, generations};
use crate::agent::Agent;
use crate::runtime::{ExecSpec, OutputStream, RuntimeError, Session, SessionControl, StdStream};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Longest message taken from a client.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Arguments of a command.
const MAX_ARGUMENTS: usize = 4096;
/// How long the client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a client that speaks SPDY is told.
const NO_SPDY: &str = "this node streams over WebSocket only; use kubectl 1.30 or newer \
                       (with 1.29, set KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true)";

/// `POST`: what kubectl before 1.30 does.
pub async fn not_spdy() -> Response {
    (StatusCode::BAD_REQUEST, NO_SPDY).into_response()
}

fn parse(query: &str) -> Result<ExecSpec, Refusal> {
    let mut spec = ExecSpec::default();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| {
            Refusal(StatusCode::BAD_REQUEST, format!("query parameter {name:?} is not percent-encoded UTF-8"))
        })?;
        let on = matches!(value.as_str(), "true" | "1");
        match name {
            "command" if spec.command.len() < MAX_ARGUMENTS => spec.command.push(value),
            "command" => return Err(Refusal(StatusCode::BAD_REQUEST, "the command has too many arguments".into())),
            // The API's names and the kubelet's.
            "stdin" | "input" => spec.stdin = on,
            "stdout" | "output" => spec.stdout = on,
            "stderr" | "error" => spec.stderr = on,
            "tty" => spec.tty = on,
            _ => {}
        }
    }
    if spec.tty {
        spec.stderr = false;
    }
    if !(spec.stdin || spec.stdout || spec.stderr) {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal(StatusCode::BAD_REQUEST, text.into()));
    }
    Ok(spec)
}

/// Percent-decoding with `+` as a space (`application/x-www-form-urlencoded`).
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Names = Path<(String, String, String)>;

/// Runs a command in a container.
pub async fn exec(
    State(agent): State<Arc<Agent>>,
    Path((namespace, pod, container)): Names,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let spec = parse(query.as_deref().unwrap_or_default())?;
    if spec.command.is_empty() {
        return Err(Refusal(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container".into()));
    }
    let id = running(&agent, &namespace, &pod, &container).await?;
    let runtime = agent.runtime.clone();
    accept(upgrade, move |socket| async move {
        let session = runtime.exec(&id, &spec).await;
        converse(socket, session, true).await;
    })
}

/// Connects to a container's own streams.
pub async fn attach(
    State(agent): State<Arc<Agent>>,
    Path((namespace, pod, container)): Names,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let spec = parse(query.as_deref().unwrap_or_default())?;
    let id = running(&agent, &namespace, &pod, &container).await?;
    let runtime = agent.runtime.clone();
    accept(upgrade, move |socket| async move {
        let session = runtime.attach(&id, &spec).await;
        converse(socket, session, false).await;
    })
}

async fn running(agent: &Agent, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal> {
    let newest = generations(agent, namespace, pod, container).await?.into_iter().next();
    match newest.filter(crate::runtime::Container::is_running) {
        Some(found) => Ok(found.id),
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("container {container:?} in pod {pod:?} is not running"))),
    }
}

fn accept<F, Fut>(upgrade: Upgrade, talk: F) -> Result<Response, Refusal>
where
    F: FnOnce(WebSocket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade.map_err(|_| Refusal(StatusCode::BAD_REQUEST, NO_SPDY.into()))?;
    let upgrade = upgrade.protocols([V5, V4]).max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    if upgrade.selected_protocol().is_none() {
        let text = format!("none of the WebSocket subprotocols {V5} and {V4} was offered");
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    Ok(upgrade.on_upgrade(talk))
}

/// Carries a session over a socket to its end. `reports_exit`: the exit code is the client's (exec), not nobody's (attach).
async fn converse(socket: WebSocket, session: Result<Session, RuntimeError>, reports_exit: bool) {
    let (mut to_client, mut from_client) = socket.split();
    let status = match session {
        Err(error) => failure(500, "InternalError", &crate::chain(&error), None),
        Ok(Session { output, input, control }) => {
            let ended = tokio::select! {
                ended = pump_output(output, &mut to_client) => ended,
                // The client has gone: there is nobody to tell anything.
                () = pump_input(&mut from_client, input, &*control) => return,
            };
            match ended {
                Err(Broken::Client) => return,
                Err(Broken::Runtime(error)) => failure(500, "InternalError", &crate::chain(&error), None),
                Ok(()) if reports_exit => exit_status(control.exit_code().await),
                Ok(()) => success(),
            }
        }
    };
    let mut message = vec![ERROR];
    message.extend_from_slice(status.to_string().as_bytes());
    let goodbye = async {
        to_client.send(Message::Binary(message.into())).await?;
        let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        to_client.send(Message::Close(Some(frame))).await?;
        // The client's own close ends the conversation.
        while let Some(Ok(_)) = from_client.next().await {}
        Ok::<(), axum::Error>(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(GOODBYE, goodbye).await {
        tracing::debug!(%error, "the client left before the end");
    }
}

enum Broken {
    Client,
    Runtime(RuntimeError),
}

async fn pump_output(mut output: OutputStream, to_client: &mut SplitSink<WebSocket, Message>) -> Result<(), Broken> {
    while let Some(piece) = output.next().await {
        let (stream, bytes) = piece.map_err(Broken::Runtime)?;
        let channel = if stream == StdStream::Err { STDERR } else { STDOUT };
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(&bytes);
        to_client.send(Message::Binary(message.into())).await.map_err(|_| Broken::Client)?;
    }
    Ok(())
}

/// Terminal size (`remotecommand.TerminalSize`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Ends when the client does.
async fn pump_input(
    from_client: &mut SplitStream<WebSocket>,
    mut input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    control: &dyn SessionControl,
) {
    while let Some(Ok(message)) = from_client.next().await {
        let data: Bytes = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        let Some((channel, payload)) = data.split_first() else { continue };
        match *channel {
            STDIN => {
                if let Some(writer) = &mut input
                    && writer.write_all(payload).await.is_err()
                {
                    // The process has closed its input; it may go on printing.
                    input = None;
                }
            }
            CLOSE if payload.first() == Some(&STDIN) => {
                if let Some(mut writer) = input.take() {
                    // Closed already by the process.
                    let _closed = writer.shutdown().await;
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice::<Size>(payload)
                    && let Err(error) = control.resize(size.width, size.height).await
                {
                    tracing::debug!(%error, "terminal not resized");
                }
            }
            _ => {}
        }
    }
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

fn failure(code: u16, reason: &str, message: &str, causes: Option<Value>) -> Value {
    let mut status = json!({ "metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": code });
    if let Some(causes) = causes {
        status["details"] = json!({ "causes": causes });
    }
    status
}

fn exit_status(code: Result<Option<i32>, RuntimeError>) -> Value {
    match code {
        Ok(Some(0)) => success(),
        Ok(Some(code)) => {
            let message = format!("command terminated with non-zero exit code: exit status {code}");
            let cause = json!([{ "reason": "ExitCode", "message": code.to_string() }]);
            let mut status = failure(500, "NonZeroExitCode", &message, Some(cause));
            // Upstream sets no code here.
            if let Some(object) = status.as_object_mut() {
                object.remove("code");
            }
            status
        }
        Ok(None) => failure(500, "InternalError", "nobody knows the command's exit code", None),
        Err(error) => failure(500, "InternalError", &crate::chain(&error), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let got =
            parse("command=sh&command=-c&command=echo%20a+b%26%C3%A9&stdin=true&output=1&tty=false").ok().unwrap();
        assert_eq!(got.command, ["sh", "-c", "echo a b&é"]);
        assert_eq!((got.stdin, got.stdout, got.stderr, got.tty), (true, true, false, false));
        for bad in ["command=sh", "command=%zz&stdout=1", "command=%f", "stdout=1&command=%ff"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(!parse("stdout=1&stderr=1&tty=true").ok().unwrap().stderr, "a terminal has one output");
    }

    #[test]
    fn exit_codes_are_told_as_upstream_tells_them() {
        assert_eq!(exit_status(Ok(Some(0)))["status"], "Success");
        let status = exit_status(Ok(Some(7)));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(status.get("code"), None);
    }
}
