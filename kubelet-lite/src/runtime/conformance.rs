//! What every runtime must do, run on the fake always and on Docker where one answers.

use std::time::Duration;

use futures::StreamExt;

use super::docker::DockerRuntime;
use super::fake::{FakeRuntime, Script};
use super::*;
use crate::clock::Clock;

/// What the suite needs to know about a runtime.
struct Subject {
    runtime: Box<dyn ContainerRuntime>,
    image: String,
    network: String,
    subnet: String,
    gateway: Ipv4Addr,
}

fn pod() -> PodRef {
    PodRef { uid: format!("uid-{:016x}", rand::random::<u64>()), name: "conf".into(), namespace: "default".into() }
}

fn sandbox_spec(pod: &PodRef, network: &str) -> SandboxSpec {
    SandboxSpec {
        pod: pod.clone(),
        attempt: 0,
        hostname: "conf".into(),
        network: SandboxNetwork::Pod(network.into()),
        ports: Vec::new(),
        host_pid: false,
        host_ipc: false,
    }
}

fn container_spec(subject: &Subject, pod: &PodRef, sandbox: &str, name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        pod: pod.clone(),
        name: name.into(),
        attempt: 2,
        hash: "abc".into(),
        sandbox_id: sandbox.into(),
        image: subject.image.clone(),
        image_name: subject.image.clone(),
        command: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()],
        env: vec![("GREETING".into(), "hello".into())],
        ..ContainerSpec::default()
    }
}

async fn text(mut stream: OutputStream) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(piece) = stream.next().await {
        let (stream, bytes) = piece.unwrap();
        let target = if stream == StdStream::Out { &mut out } else { &mut err };
        target.push_str(&String::from_utf8_lossy(&bytes));
    }
    (out, err)
}

async fn wait_exit(runtime: &dyn ContainerRuntime, uid: &str, id: &str) -> Exit {
    for _ in 0..1000 {
        let found = runtime.pod(uid).await.unwrap();
        if let Some(exit) = found.iter().find(|c| c.id == id).and_then(Container::exit) {
            return exit.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("container {id} did not end");
}

async fn suite(subject: Subject) {
    let runtime = &*subject.runtime;
    assert!(!runtime.version().await.unwrap().version.is_empty());
    assert!(runtime.image(&subject.image).await.unwrap().is_some());
    assert_eq!(runtime.image("no-such-image:never").await.unwrap(), None);

    runtime.create_network(&subject.network, &subject.subnet, subject.gateway).await.unwrap();
    let again = runtime.create_network(&subject.network, &subject.subnet, subject.gateway).await;
    assert!(matches!(again, Err(RuntimeError::Conflict(_))), "{again:?}");
    let other = runtime.create_network(&format!("{}-2", subject.network), &subject.subnet, subject.gateway).await;
    assert!(matches!(other, Err(RuntimeError::Conflict(_))), "{other:?}");
    let networks = runtime.networks().await.unwrap();
    let network = networks.iter().find(|n| n.name == subject.network).unwrap();
    assert_eq!(
        (network.subnets.as_slice(), network.gateway),
        ([subject.subnet.clone()].as_slice(), Some(subject.gateway))
    );

    let pod = pod();
    let mut events = runtime.events().await.unwrap();
    let sandbox = runtime.run_sandbox(&sandbox_spec(&pod, &subject.network)).await.unwrap();
    assert_eq!((sandbox.kind, sandbox.pod.clone(), sandbox.is_running()), (Kind::Sandbox, pod.clone(), true));
    assert!(sandbox.address.is_some());
    // A second one of the same name must work: the first may be the leftover of a lost request.
    let double = runtime.run_sandbox(&sandbox_spec(&pod, &subject.network)).await.unwrap();
    assert_ne!(double.id, sandbox.id);
    runtime.remove(&double.id).await.unwrap();

    // A container that ends by itself.
    let spec = container_spec(&subject, &pod, &sandbox.id, "ends", "echo $GREETING; echo oops >&2; exit 3");
    let ends = runtime.create(&spec).await.unwrap();
    let made = runtime.pod(&pod.uid).await.unwrap().into_iter().find(|c| c.id == ends).unwrap();
    assert_eq!((made.state, made.name.as_str(), made.attempt, made.hash.as_str()), (State::Created, "ends", 2, "abc"));
    assert_eq!((made.sandbox_id.as_str(), made.image.as_str()), (sandbox.id.as_str(), subject.image.as_str()));
    runtime.start(&ends).await.unwrap();
    let exit = wait_exit(runtime, &pod.uid, &ends).await;
    assert_eq!((exit.code, exit.oom_killed), (3, false));
    let (out, err) = text(runtime.logs(&ends, &LogOptions::default()).await.unwrap()).await;
    assert_eq!((out.as_str(), err.as_str()), ("hello\n", "oops\n"));
    let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.pod_uid, pod.uid);

    // One that runs until stopped.
    let spec =
        container_spec(&subject, &pod, &sandbox.id, "runs", "trap 'exit 0' TERM; while true; do sleep 0.05; done");
    let runs = runtime.create(&spec).await.unwrap();
    runtime.start(&runs).await.unwrap();
    assert!(runtime.list().await.unwrap().iter().any(|l| l.id == runs && l.running && l.pod == pod));
    let exec = ExecSpec {
        command: ["/bin/busybox", "sh", "-c", "echo from exec; exit 7"].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..ExecSpec::default()
    };
    let session = runtime.exec(&runs, &exec).await.unwrap();
    assert_eq!(text(session.output).await.0, "from exec\n");
    assert_eq!(session.control.exit_code().await.unwrap(), Some(7));
    runtime.stats(&runs).await.unwrap();
    runtime.stop(&runs, Duration::from_secs(10)).await.unwrap();
    assert!(wait_exit(runtime, &pod.uid, &runs).await.code != 137, "must end by the stop signal");
    runtime.stop(&runs, Duration::from_secs(10)).await.unwrap();

    // Absent things are absent without fuss.
    runtime.stop("no-such-container", Duration::ZERO).await.unwrap();
    runtime.remove("no-such-container").await.unwrap();
    assert!(runtime.start("no-such-container").await.unwrap_err().is_not_found());

    for left in runtime.pod(&pod.uid).await.unwrap() {
        runtime.remove(&left.id).await.unwrap();
    }
    assert_eq!(runtime.pod(&pod.uid).await.unwrap(), Vec::new());
    runtime.remove_network(&subject.network).await.unwrap();
    runtime.remove_network(&subject.network).await.unwrap();
}

#[tokio::test]
async fn fake_conforms() {
    let director = |spec: &ContainerSpec| match spec.name.as_str() {
        "ends" => Script {
            run_for: Some(Duration::from_millis(10)),
            exit_code: 3,
            output: vec![(StdStream::Out, "hello\n".into()), (StdStream::Err, "oops\n".into())],
            ..Script::default()
        },
        _ => Script { exec: ("from exec\n".into(), 7), ..Script::default() },
    };
    let runtime = FakeRuntime::new(Clock::System, Box::new(director));
    runtime.forget_image("no-such-image:never");
    let subnet = "10.201.0.0/24".to_owned();
    let (image, network) = ("busybox".to_owned(), "conf".to_owned());
    let gateway = Ipv4Addr::new(10, 201, 0, 1);
    suite(Subject { runtime: Box::new(runtime), image, network, subnet, gateway }).await;
}

#[tokio::test]
async fn docker_conforms() {
    let Some(image) = crate::testing::docker_image().await else { return };
    let instance = format!("conf-{:08x}", rand::random::<u32>());
    let runtime = DockerRuntime::new(docker::DEFAULT_SOCKET, &instance);
    let third = rand::random::<u8>();
    let subject = Subject {
        runtime: Box::new(runtime),
        image,
        network: format!("scaleup-{instance}"),
        subnet: format!("10.222.{third}.0/24"),
        gateway: Ipv4Addr::new(10, 222, third, 1),
    };
    suite(subject).await;
}
