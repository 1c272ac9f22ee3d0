//! Length-prefixed JSON over any byte stream.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// The largest message. A `gc` request with thirty thousand attachments fits.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("a message of {0} bytes is over the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("the message is not what the protocol says: {0}")]
    Json(#[from] serde_json::Error),
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_MESSAGE => frame[..4].copy_from_slice(&prefix.to_be_bytes()),
        _ => return Err(CodecError::TooLong(length)),
    }
    Ok(frame)
}

fn length(header: [u8; 4]) -> Result<usize, CodecError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE {
        Err(CodecError::TooLong(length))
    } else {
        Ok(length)
    }
}

/// Writes one message.
pub fn send<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), CodecError> {
    writer.write_all(&encode(message)?)?;
    writer.flush()?;
    Ok(())
}

/// Reads one message; `None` where the stream ended before the next one began.
pub fn receive<T: DeserializeOwned>(reader: &mut impl Read) -> Result<Option<T>, CodecError> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match reader.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = length(header)?;
    // Grown as bytes arrive: a length is a claim, not a reason to reserve memory.
    let mut body = Vec::new();
    reader.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

/// [`send`] for tokio.
#[cfg(feature = "tokio")]
pub async fn send_async<T: Serialize>(
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &T,
) -> Result<(), CodecError> {
    use tokio::io::AsyncWriteExt;
    writer.write_all(&encode(message)?).await?;
    writer.flush().await?;
    Ok(())
}

/// [`receive`] for tokio. Not cancel-safe: a message that was begun and not awaited to its end is lost.
#[cfg(feature = "tokio")]
pub async fn receive_async<T: DeserializeOwned>(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Result<Option<T>, CodecError> {
    use tokio::io::AsyncReadExt;
    let mut header = [0; 4];
    let first = reader.read(&mut header).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[first..]).await?;
    let length = length(header)?;
    let mut body = Vec::new();
    reader.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}
