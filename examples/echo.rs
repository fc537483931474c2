//! Sends every message back: `cargo run --example echo -- 127.0.0.1:7000`.

use portcullis::backend::Backend;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let mut backend = Backend::bind(&address).await?;
    println!("echo backend on {}", backend.address());
    while let Some(mut session) = backend.accept().await {
        tokio::spawn(async move {
            while let Some(message) = session.next().await {
                if session.send(message).await.is_err() {
                    break;
                }
            }
            if let Some(end) = session.ended() {
                println!("ended by {:?}: {} {} {}", end.by, end.cause, end.code, end.reason);
            }
        });
    }
    Ok(())
}
