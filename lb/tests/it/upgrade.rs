//! Connections that leave HTTP.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// An endpoint that switches protocols and echoes; the first echoed byte comes with the 101 itself.
async fn upgrading_endpoint() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let head = read_head(&mut stream).await.to_lowercase();
                if !head.contains("upgrade: websocket") || !head.contains("connection: upgrade") {
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    return;
                }
                let reply = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n!";
                stream.write_all(reply).await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
        }
    });
    addr
}

const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_a_tunnel_with_half_close() {
    let lab = Lab::http(&[upgrading_endpoint().await]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(UPGRADE).await.unwrap();
    let head = read_head(&mut stream).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    let payload: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
    let expected = payload.clone();
    let (mut read, mut write) = stream.into_split();
    let writer = tokio::spawn(async move {
        write.write_all(&payload).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut echoed = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(echoed[0], b'!');
    assert!(echoed[1..] == expected, "{} bytes came back", echoed.len() - 1);
    drop(writer.await.unwrap());
    lab.until("the tunnel is counted", |t| t.codes[0] == 1 && t.bytes_in == 1_000_000).await;
    assert_eq!(lab.totals().bytes_out, 1_000_001);
    lab.until("nothing is open", |t| t.active_connections == 0).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_nobody_asked_for_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
                .await;
        }
    });
    let lab = Lab::http(&[addr]).await;
    assert_eq!(Client::connect(lab.addr).await.get("/").await.0, 502);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_upgrades_are_not_passed_on() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let request = b"GET /headers HTTP/1.1\r\nhost: a\r\nconnection: close, upgrade, http2-settings\r\nupgrade: h2c\r\n\
        http2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n";
    let reply = String::from_utf8(raw(lab.addr, request).await).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert!(!reply.contains("h2c") && !reply.contains("http2-settings"), "{reply}");
    lab.stop().await;
}
