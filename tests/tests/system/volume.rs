//! A device together with what it must hold.

use hast_nbd::client::Client;
use hast_tests::{Context, Failure, Node, Outcome, disk};

/// An NBD client and a model of the device's contents.
pub(crate) struct Volume {
    pub(crate) client: Client,
    model: Vec<u8>,
}

impl Volume {
    /// The device of a resource whose provider is all zeros.
    pub(crate) fn fresh(node: &Node, provider: &str) -> Result<Volume, Failure> {
        let client = node.client(provider)?;
        let size = usize::try_from(client.size())?;
        Ok(Volume { client, model: vec![0; size] })
    }

    /// The same contents as seen through another node.
    pub(crate) fn moved_to(&self, node: &Node, provider: &str) -> Result<Volume, Failure> {
        Ok(Volume { client: node.client(provider)?, model: self.model.clone() })
    }

    /// Writes and remembers.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Outcome {
        self.client.write(offset as u64, data).context(format!("write of {} at {offset}", data.len()))?;
        self.model[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    /// Writes incompressible bytes.
    pub(crate) fn scribble(&mut self, seed: u64, offset: usize, length: usize) -> Outcome {
        self.write(offset, &disk::pattern(seed, length))
    }

    /// Makes every completed write durable.
    pub(crate) fn flush(&self) -> Outcome {
        self.client.flush().context("flush")
    }

    /// Reads everything back.
    pub(crate) fn verify(&self) -> Outcome {
        for (n, expected) in self.model.chunks(1 << 20).enumerate() {
            let offset = n << 20;
            let found =
                self.client.read(offset as u64, expected.len()).context(format!("read at {offset}"))?;
            if let Some(at) = found.iter().zip(expected).position(|(x, y)| x != y) {
                return Failure::because(format!("wrong byte on the device at {}", offset + at));
            }
        }
        Ok(())
    }

    /// Compares the provider's data area with what was written.
    pub(crate) fn verify_provider(&self, node: &Node, resource: &str) -> Outcome {
        let found = disk::data(&node.provider(resource))?;
        if found.len() != self.model.len() {
            return Failure::because(format!("{} bytes instead of {}", found.len(), self.model.len()));
        }
        match found.iter().zip(&self.model).position(|(x, y)| x != y) {
            None => Ok(()),
            Some(at) => Failure::because(format!("wrong byte on {}'s provider at {at}", node.name())),
        }
    }
}
