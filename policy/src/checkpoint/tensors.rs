//! Tensors by name in safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, View, serialize_to_file};
use safetensors::{Dtype, SafeTensorError};
use tch::{Device, Kind, Tensor};

use super::Weights;
use super::files::unwritable;
use crate::error::{PolicyError, Result};

/// Writes tensors by their names as a safetensors file, f32: the numbers that are in f32 keep their bits.
///
/// # Errors
/// If the disk is full or the place is not writable.
pub fn save_weights(path: &Path, weights: &Weights) -> Result<()> {
    // safetensors makes a file that only its owner may read; a checkpoint is like any other file.
    let permissions = File::create(path).and_then(|file| file.metadata());
    let permissions = permissions.map_err(|error| unwritable(path, &error))?.permissions();
    let views = weights.iter().map(|(name, tensor)| (name, HostView::new(tensor)));
    // transformers refuses files that do not say which framework's layout they have.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => unwritable(path, &error),
        error => PolicyError::Unwritable { path: path.to_path_buf(), cause: error.to_string() },
    })?;
    fs::set_permissions(path, permissions)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| unwritable(path, &error))
}

/// Reads what [`save_weights`] wrote: f32, on the CPU.
///
/// # Errors
/// If the file is not there, or is broken.
pub fn load_weights(path: &Path) -> Result<Weights> {
    let shard = Shard::open(path.to_path_buf())?;
    let all: BTreeSet<String> = shard.shapes().into_iter().map(|(name, _)| name).collect();
    let mut weights = Weights::new();
    shard.read(&all, &mut weights)?;
    Ok(weights)
}

/// A safetensors file whose header has been read and found right.
pub(super) struct Shard {
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies in its file.
struct Entry {
    kind: Kind,
    shape: Vec<i64>,
    start: u64,
    bytes: usize,
}

impl Shard {
    /// Reads the header, and checks that the file has all the bytes that it speaks of.
    pub fn open(path: PathBuf) -> Result<Self> {
        let unreadable = |cause| PolicyError::Unreadable { path: path.clone(), cause };
        let mut file = File::open(&path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut size = [0; 8];
        if length < 8 {
            return Err(PolicyError::broken(&path, format!("it has {length} bytes, too few for a header")));
        }
        file.read_exact(&mut size).map_err(unreadable)?;
        let header_end = u64::from_le_bytes(size).saturating_add(8);
        if header_end > length {
            let cause = format!("its header should end at byte {header_end}, but it has {length} bytes");
            return Err(PolicyError::broken(&path, cause));
        }
        let mut header = vec![0; header_end as usize];
        file.rewind().and_then(|()| file.read_exact(&mut header)).map_err(unreadable)?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|error| PolicyError::broken(&path, format!("its header is damaged ({error})")))?;
        let expected = header_end + metadata.data_len() as u64;
        if length != expected {
            let cause = format!("it should have {expected} bytes, and has {length}");
            return Err(PolicyError::broken(&path, cause));
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let kind = match info.dtype {
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F64 => Kind::Double,
                other => {
                    let found = format!("the type {other:?} of the tensor {name}");
                    return Err(PolicyError::unsupported(&path, found, "F32, F16, BF16, F64"));
                }
            };
            let (start, end) = info.data_offsets;
            let shape = info.shape.iter().map(|&size| size as i64).collect();
            tensors.insert(name, Entry { kind, shape, start: header_end + start as u64, bytes: end - start });
        }
        Ok(Shard { path, tensors })
    }

    /// The shapes of its tensors by their names.
    pub fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        self.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// Adds those of `wanted` that it has to `weights`, f32.
    pub fn read(&self, wanted: &BTreeSet<String>, weights: &mut Weights) -> Result<()> {
        let unreadable = |cause| PolicyError::Unreadable { path: self.path.clone(), cause };
        let mut file = File::open(&self.path).map_err(unreadable)?;
        for (name, entry) in self.tensors.iter().filter(|(name, _)| wanted.contains(*name)) {
            let mut bytes = vec![0; entry.bytes];
            file.seek(SeekFrom::Start(entry.start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(unreadable)?;
            let tensor = Tensor::f_from_data_size(&bytes, &entry.shape, entry.kind)
                .map_err(|error| PolicyError::broken(&self.path, error))?;
            weights.insert(name.clone(), tensor.to_kind(Kind::Float));
        }
        Ok(())
    }
}

/// A tensor whose bytes are copied when they are written, one tensor at a time.
struct HostView<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
}

impl<'a> HostView<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        HostView { tensor, shape: tensor.size().iter().map(|&size| size as usize).collect() }
    }
}

impl View for HostView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let host = self.tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut bytes = vec![0; self.data_len()];
        host.copy_data_u8(&mut bytes, host.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * 4
    }
}
