//! Plain TCP.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Sends its name, then echoes until the client's half is closed, then says goodbye.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                write.write_all(name.as_bytes()).await.unwrap();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.write_all(b"bye").await;
            });
        }
    });
    addr
}

async fn name(stream: &mut TcpStream) -> String {
    let mut name = [0; 2];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut name)).await.unwrap().unwrap();
    String::from_utf8(name.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_take_turns_and_half_close_works() {
    let endpoints = [echo("t0").await, echo("t1").await];
    let lab = Lab::start("db", &endpoints, |_| {}).await;
    let mut names = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(lab.addr).await.unwrap();
        names.push(name(&mut stream).await);
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, "pingbye");
    }
    assert!(names[0] != names[1] && names[..2] == names[2..], "{names:?}");
    let usage = lab.lb.usage();
    assert_eq!(usage.iter().map(|(_, u)| (u.requests, u.bytes_in, u.bytes_out)).collect::<Vec<_>>(), [(2, 8, 18); 2]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_removed_endpoints_go_on() {
    let (old, new) = (echo("t0").await, echo("t1").await);
    let lab = Lab::start("db", &[old], |_| {}).await;
    let mut held = TcpStream::connect(lab.addr).await.unwrap();
    assert_eq!(name(&mut held).await, "t0");
    lab.set(&[new]);
    assert_eq!(name(&mut TcpStream::connect(lab.addr).await.unwrap()).await, "t1");
    held.write_all(b"ok").await.unwrap();
    assert_eq!(name(&mut held).await, "ok");
    drop(held);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_endpoints_are_passed_over_and_none_is_a_reset() {
    let dead = dead();
    let alive = echo("t1").await;
    let lab = Lab::start("db", &[dead, alive], |_| {}).await;
    for _ in 0..4 {
        assert_eq!(name(&mut TcpStream::connect(lab.addr).await.unwrap()).await, "t1");
    }
    lab.set(&[]);
    // The reset may come before connecting was noticed to have succeeded.
    let refused = async { TcpStream::connect(lab.addr).await?.read_u8().await };
    let error = tokio::time::timeout(PATIENCE, refused).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    lab.stop().await;
}
