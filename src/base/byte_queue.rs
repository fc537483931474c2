//! Byte queues that share one bounded pool of chunks. An empty queue holds no memory, so a
//! million idle connections cost nothing here.

/// Usable bytes of one chunk.
pub const CHUNK_BYTES: usize = 1024;

/// Ends a chain of chunks.
const NONE: u32 = u32::MAX;

/// The pool has too few free chunks for what was pushed; nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the byte pool is exhausted")]
pub struct PoolExhausted;

/// The chunks of all queues of one worker. Memory is taken from the allocator when a chunk is
/// first needed and kept until [`BytePool::release_free`]; freed chunks are reused last in, first
/// out.
///
/// Invariant: `in_use + length of the free chain == chunks.len() <= chunks_max`.
#[derive(Debug)]
pub struct BytePool {
    // Boxed, so that growth moves pointers and not the bytes, and no memory is held in advance.
    #[allow(clippy::vec_box)]
    // None: a free chunk whose memory was given back.
    chunks: Vec<Option<Box<[u8; CHUNK_BYTES]>>>,
    /// For every chunk the one after it: in its queue, or in the chain of free chunks.
    next: Vec<u32>,
    free: u32,
    in_use: u32,
    chunks_max: u32,
}

impl BytePool {
    /// An empty pool that may grow to `chunks_max` chunks of [`CHUNK_BYTES`].
    pub fn new(chunks_max: u32) -> Self {
        assert!(chunks_max < NONE);
        BytePool { chunks: Vec::new(), next: Vec::new(), free: NONE, in_use: 0, chunks_max }
    }

    /// Bytes of the chunks that queues hold, their unused ends included.
    pub fn in_use_bytes(&self) -> usize {
        self.in_use as usize * CHUNK_BYTES
    }

    /// Bytes that the pool may still hand out.
    pub fn free_bytes(&self) -> usize {
        self.free_chunks() * CHUNK_BYTES
    }

    fn free_chunks(&self) -> usize {
        (self.chunks_max - self.in_use) as usize
    }

    /// A chunk of no queue. The caller has checked that there is one.
    fn take(&mut self) -> u32 {
        assert!(self.in_use < self.chunks_max);
        self.in_use += 1;
        if self.free == NONE {
            self.chunks.push(Some(Box::new([0; CHUNK_BYTES])));
            self.next.push(NONE);
            return (self.chunks.len() - 1) as u32;
        }
        let chunk = self.free;
        self.free = std::mem::replace(&mut self.next[chunk as usize], NONE);
        self.chunks[chunk as usize].get_or_insert_with(|| Box::new([0; CHUNK_BYTES]));
        chunk
    }

    /// Gives the memory of the free chunks back to the allocator: for when it is short.
    pub fn release_free(&mut self) {
        let mut chunk = self.free;
        while chunk != NONE {
            self.chunks[chunk as usize] = None;
            chunk = self.next[chunk as usize];
        }
    }

    /// Puts the chunk back and returns the one that followed it.
    fn put_back(&mut self, chunk: u32) -> u32 {
        assert!(self.in_use > 0);
        self.in_use -= 1;
        let after = std::mem::replace(&mut self.next[chunk as usize], self.free);
        self.free = chunk;
        after
    }
}

/// A first-in, first-out queue of bytes in chunks of a [`BytePool`]. Every call must be given
/// the same pool. A queue that is dropped while it holds bytes keeps their chunks from the pool:
/// [`clear`](Self::clear) it first.
///
/// Invariants: the chain from `first` to `last` holds `read + len` bytes up to `written` in
/// `last`; `read < CHUNK_BYTES`; `len == 0` exactly when there is no chunk.
#[derive(Debug)]
pub struct ByteQueue {
    len: u32,
    first: u32,
    last: u32,
    /// Bytes of the first chunk that were already taken.
    read: u16,
    /// Bytes of the last chunk that are filled.
    written: u16,
}

const _: () = assert!(size_of::<ByteQueue>() == 16);

impl Default for ByteQueue {
    fn default() -> Self {
        ByteQueue { len: 0, first: NONE, last: NONE, read: 0, written: 0 }
    }
}

impl ByteQueue {
    /// Number of bytes in the queue.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends all of `bytes`, or nothing when the pool has too few free chunks. No queue takes
    /// 4 GiB, whatever the pool has.
    pub fn push(&mut self, pool: &mut BytePool, bytes: &[u8]) -> Result<(), PoolExhausted> {
        if self.len().saturating_add(bytes.len()) > u32::MAX as usize {
            return Err(PoolExhausted);
        }
        let room = if self.is_empty() { 0 } else { CHUNK_BYTES - usize::from(self.written) };
        if bytes.len().saturating_sub(room).div_ceil(CHUNK_BYTES) > pool.free_chunks() {
            return Err(PoolExhausted);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_empty() || usize::from(self.written) == CHUNK_BYTES {
                self.append_chunk(pool);
            }
            let start = usize::from(self.written);
            let count = rest.len().min(CHUNK_BYTES - start);
            let (now, later) = rest.split_at(count);
            let chunk = pool.chunks[self.last as usize].as_mut().expect("it is in a queue");
            chunk[start..start + count].copy_from_slice(now);
            self.written += count as u16;
            self.len += count as u32;
            rest = later;
        }
        Ok(())
    }

    /// Moves bytes out until `into` is full or the queue empty; returns how many.
    pub fn copy_out(&mut self, pool: &mut BytePool, into: &mut [u8]) -> usize {
        let mut copied = 0;
        while copied < into.len() && !self.is_empty() {
            let front = self.front(pool);
            let count = front.len().min(into.len() - copied);
            into[copied..copied + count].copy_from_slice(&front[..count]);
            self.consume(pool, count);
            copied += count;
        }
        copied
    }

    /// The oldest bytes that lie in one piece; empty only when the queue is.
    pub fn front<'pool>(&self, pool: &'pool BytePool) -> &'pool [u8] {
        if self.is_empty() {
            return &[];
        }
        let start = usize::from(self.read);
        let chunk = pool.chunks[self.first as usize].as_ref().expect("it is in a queue");
        &chunk[start..start + self.front_len()]
    }

    /// Throws the oldest `count` bytes away; there must be that many.
    pub fn consume(&mut self, pool: &mut BytePool, count: usize) {
        assert!(count <= self.len(), "consumed more than the queue holds");
        let mut left = count;
        while left > 0 {
            let step = left.min(self.front_len());
            self.read += step as u16;
            self.len -= step as u32;
            left -= step;
            if self.len == 0 || usize::from(self.read) == CHUNK_BYTES {
                self.first = pool.put_back(self.first);
                self.read = 0;
            }
        }
        if self.len == 0 {
            *self = ByteQueue::default();
        }
    }

    /// Throws everything away.
    pub fn clear(&mut self, pool: &mut BytePool) {
        self.consume(pool, self.len());
    }

    fn front_len(&self) -> usize {
        self.len().min(CHUNK_BYTES - usize::from(self.read))
    }

    fn append_chunk(&mut self, pool: &mut BytePool) {
        let chunk = pool.take();
        if self.is_empty() {
            self.first = chunk;
            self.read = 0;
        } else {
            pool.next[self.last as usize] = chunk;
        }
        self.last = chunk;
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const QUEUES: usize = 3;
    const CHUNKS_MAX: u32 = 8;

    #[derive(Clone, Debug)]
    enum Action {
        Push(usize, usize),
        CopyOut(usize, usize),
        Consume(usize, usize),
        Clear(usize),
        Release,
    }

    fn action() -> impl Strategy<Value = Action> {
        let size = prop_oneof![0..40usize, 1000..1050usize, 0..6000usize];
        let queue = 0..QUEUES;
        prop_oneof![
            4 => (queue.clone(), size.clone()).prop_map(|(q, n)| Action::Push(q, n)),
            2 => (queue.clone(), size.clone()).prop_map(|(q, n)| Action::CopyOut(q, n)),
            2 => (queue.clone(), size).prop_map(|(q, n)| Action::Consume(q, n)),
            1 => queue.prop_map(Action::Clear),
            1 => Just(Action::Release),
        ]
    }

    /// The fewest chunks that could hold the queue, given where its first byte lies.
    fn chunks_of(queue: &ByteQueue) -> usize {
        if queue.is_empty() { 0 } else { (usize::from(queue.read) + queue.len()).div_ceil(1024) }
    }

    fn run(actions: &[Action]) {
        let mut pool = BytePool::new(CHUNKS_MAX);
        let mut queues: [ByteQueue; QUEUES] = Default::default();
        let mut models: [VecDeque<u8>; QUEUES] = Default::default();
        let mut stamp = 0u8;
        for action in actions {
            match *action {
                Action::Push(q, count) => {
                    let bytes: Vec<u8> = (0..count)
                        .map(|_| {
                            stamp = stamp.wrapping_mul(5).wrapping_add(1);
                            stamp
                        })
                        .collect();
                    let end = usize::from(queues[q].read) + queues[q].len() + count;
                    let needed =
                        if count == 0 && queues[q].is_empty() { 0 } else { end.div_ceil(1024) };
                    let others: usize =
                        (0..QUEUES).filter(|o| *o != q).map(|o| chunks_of(&queues[o])).sum();
                    let fits = needed + others <= CHUNKS_MAX as usize;
                    assert_eq!(queues[q].push(&mut pool, &bytes).is_ok(), fits);
                    if fits {
                        models[q].extend(&bytes);
                    }
                }
                Action::CopyOut(q, count) => {
                    let mut into = vec![0; count];
                    let copied = queues[q].copy_out(&mut pool, &mut into);
                    assert_eq!(copied, count.min(models[q].len()));
                    assert!(into[..copied].iter().copied().eq(models[q].drain(..copied)));
                }
                Action::Consume(q, count) => {
                    let count = count.min(models[q].len());
                    queues[q].consume(&mut pool, count);
                    models[q].drain(..count);
                }
                Action::Clear(q) => {
                    queues[q].clear(&mut pool);
                    models[q].clear();
                }
                Action::Release => {
                    pool.release_free();
                    let held = pool.chunks.iter().flatten().count();
                    assert_eq!(held * CHUNK_BYTES, pool.in_use_bytes());
                }
            }
            for (queue, model) in queues.iter().zip(&models) {
                assert_eq!(queue.len(), model.len());
                let front = queue.front(&pool);
                assert_eq!(front.is_empty(), model.is_empty());
                assert!(front.iter().eq(model.iter().take(front.len())));
            }
            let chunks: usize = queues.iter().map(chunks_of).sum();
            assert_eq!(pool.in_use_bytes(), chunks * CHUNK_BYTES);
            assert_eq!(pool.in_use_bytes() + pool.free_bytes(), CHUNKS_MAX as usize * CHUNK_BYTES);
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_deque(actions in prop::collection::vec(action(), 1..80)) {
            run(&actions);
        }
    }

    #[test]
    fn push_is_all_or_nothing_and_chunks_are_reused_last_in_first_out() {
        let mut pool = BytePool::new(2);
        let mut queue = ByteQueue::default();
        assert_eq!(queue.push(&mut pool, &[1; 2049]), Err(PoolExhausted));
        assert_eq!((queue.len(), pool.in_use_bytes()), (0, 0));
        assert_eq!(queue.push(&mut pool, &[1; 2048]), Ok(()));
        assert_eq!(queue.push(&mut pool, &[2]), Err(PoolExhausted));
        assert_eq!(queue.push(&mut pool, &[]), Ok(()));
        queue.consume(&mut pool, 1024);
        assert_eq!(queue.push(&mut pool, &[2]), Ok(()));
        queue.clear(&mut pool);
        assert_eq!(pool.in_use_bytes(), 0);
        let last_freed = pool.free;
        queue.push(&mut pool, &[3]).expect("room");
        assert_eq!(queue.first, last_freed);
        assert_eq!(pool.chunks.len(), 2, "no chunk beyond the two was ever made");
    }
}
