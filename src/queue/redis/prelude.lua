-- In front of every script: the helpers, and the queue's state.
--
-- KEYS[1]  the queue's `state` hash; its other keys are named after it and lie in the same slot
-- ARGV[1]  now, as 16 hexadecimal digits; then the salt that the client knows, or nothing
-- ARGV[2]  this call's token (32 characters), or empty for a call that may run twice
-- ARGV[3]  tokens whose replies have arrived, one after the other
--
-- Times, positions and ids are 64 bits wide, which Lua's numbers are not: they are kept as 16
-- hexadecimal digits, whose text order is their order. Every ordered set has only the score 0, so
-- that its order is the text order of its members.
local PREFIX = string.sub(KEYS[1], 1, -6)
local NOW, SALT = string.sub(ARGV[1], 1, 16), string.sub(ARGV[1], 17)
local TOKEN, SEEN = ARGV[2], ARGV[3]
local ZERO, NEVER, NONE = '0000000000000000', 'ffffffffffffffff', 'ffffffff'
local CHUNK, SLICE, REPLY_SECONDS = 1000, 1000, 600
local call, sub, format = redis.call, string.sub, string.format

-- Something else deleted or changed keys. Redis takes nothing back when a script fails in its middle, so what could
-- make it fail is looked at first: here, in `sound`, and wherever a value that was stored is read.
local function lost(what)
  return redis.error_reply('LOST queue ' .. string.match(PREFIX, '{(.*)}:') .. ' has lost keys: ' .. what)
end

local TYPES = {
  state = 'hash', requests = 'hash', bookmarks = 'hash', keys = 'zset',
  ready = 'zset', moved = 'zset', due = 'zset', delayed = 'zset', expiry = 'zset', flight = 'zset',
  offers = 'zset', done = 'zset', dead = 'zset', settled = 'zset', retained = 'zset', keyed = 'zset',
}
-- The keys of each open batch begin so.
local OF_BATCHES = { 'batch:', 'members:', 'outcomes:' }
-- How many members each of them has; asking so costs no more than asking for its type.
local CARD = { hash = 'HLEN', zset = 'ZCARD' }
local cards = {}
for name, expected in pairs(TYPES) do
  local found = redis.pcall(CARD[expected], PREFIX .. name)
  if type(found) == 'table' then
    local other = call('TYPE', PREFIX .. name).ok
    return redis.error_reply('WRONGTYPE key ' .. PREFIX .. name .. ' is a ' .. other .. ', not a ' .. expected)
  end
  cards[name] = found
end

for at = 1, #SEEN, 32 do
  call('UNLINK', PREFIX .. 'reply:' .. sub(SEEN, at, at + 31))
end
if TOKEN ~= '' then
  local known = call('GET', PREFIX .. 'reply:' .. TOKEN)
  if known then
    return cmsgpack.unpack(known)
  end
end

local TEXTS = { 'format', 'salt', 'last', 'last_batch', 'fence', 'sequence', 'seen_position', 'seen_at' }
local COUNTS = { 'pushed', 'done', 'expired', 'cancelled', 'purged', 'ready_bytes', 'held_bytes' }
local function is_digits(value) return value and #value == 16 and not string.find(value, '%X') end
local state, changed = {}, false
do
  local names = {}
  for _, name in ipairs(TEXTS) do names[#names + 1] = name end
  for _, name in ipairs(COUNTS) do names[#names + 1] = name end
  local values = call('HMGET', PREFIX .. 'state', unpack(names))
  for i, name in ipairs(names) do
    local value = values[i]
    state[name] = value
    local is_sound = not value or name == 'format' or is_digits(value)
    if i > #TEXTS then
      state[name] = tonumber(value or '0')
      is_sound = state[name]
    end
    if not is_sound then return lost(PREFIX .. 'state has another value in ' .. name) end
  end
end

-- A restore gives a queue the salt of the one that was dumped: clients from before learn it, and ask again.
if SALT ~= '' and state.salt and state.salt ~= SALT then
  return { 'salt', state.salt }
end

local function decimal(n) return format('%.0f', n) end
local function hex8(n) return format('%08x', n) end
local function number(digits) return tonumber(digits, 16) end

local function successor(digits)
  local low = number(sub(digits, 9)) + 1
  if low < 4294967296 then return sub(digits, 1, 8) .. hex8(low) end
  return hex8(number(sub(digits, 1, 8)) + 1) .. hex8(0)
end

-- The position at the tail.
local function tail()
  local position = successor(state.last)
  if NOW > position then position = NOW end
  state.last = position
  return position
end

-- Writes are collected by command and key, and sent a thousand at a time; `flush` before reading them.
local pending = { ZADD = {}, ZREM = {}, HSET = {}, HDEL = {} }
local function later(command, key, first, second)
  local args = pending[command][key]
  if not args then
    args = { command, PREFIX .. key, count = 2 }
    pending[command][key] = args
  end
  local count = args.count + 1
  args[count] = first
  if second then
    count = count + 1
    args[count] = second
  end
  args.count = count
  if count > 2 * CHUNK then
    call(unpack(args, 1, count))
    pending[command][key] = nil
  end
end
local function flush()
  for command, keys in pairs(pending) do
    for _, args in pairs(keys) do call(unpack(args, 1, args.count)) end
    pending[command] = {}
  end
end
local function add(key, member) later('ZADD', key, '0', member) end
local function remove(key, member) later('ZREM', key, member) end

local dropped = {}
local function drop(key)
  dropped[#dropped + 1] = PREFIX .. key
  if #dropped >= CHUNK then
    call('UNLINK', unpack(dropped))
    dropped = {}
  end
end

-- Members of an ordered set up to the time `upto`, at most a slice of them.
local function until_time(key, upto)
  return call('ZRANGE', PREFIX .. key, '-', '[' .. upto .. 'g', 'BYLEX', 'LIMIT', 0, SLICE)
end

-- What is known of an idempotency key: its digest 32, id 16, expiry time 16, digest of the payload 32; or nil.
local function known_key(key)
  return call('ZRANGE', PREFIX .. 'keys', '[' .. key, '[' .. key .. 'g', 'BYLEX', 'LIMIT', 0, 1)[1]
end

-- A request's record; `codec.rs` has the table of its columns.
local function record(kind, mark, position, at, attempts, batch, sequence, kept, reason, fixed, note)
  return kind .. mark .. position .. at .. hex8(attempts) .. batch .. sequence .. kept .. reason
    .. (note and hex8(#note) or NONE) .. fixed .. (note or '')
end
local function position_of(rec) return sub(rec, 3, 18) end
local function attempts_of(rec) return number(sub(rec, 35, 42)) end
local function expires_of(rec) return sub(rec, 100, 115) end
local function size_of(rec) return number(sub(rec, 132, 139)) end
local function fixed_of(rec) return sub(rec, 100, 147 + number(sub(rec, 140, 147))) end
local function note_of(rec)
  local length = sub(rec, 92, 99)
  if length == NONE then return nil end
  return sub(rec, #rec + 1 - number(length))
end
local function member_of(id, rec) return position_of(rec) .. id .. sub(rec, 132, 139) end

local RECORD = '^[lrdx][c-]' .. string.rep('%x', 88) .. '.' .. string.rep('%x', 56)
local function is_record(rec)
  if not rec or not string.find(rec, RECORD) then return false end
  local note = sub(rec, 92, 99)
  return #rec == 147 + number(sub(rec, 140, 147)) + (note == NONE and 0 or number(note))
end

-- Puts a request at the tail of the ready ones.
local function make_ready(id, rec, at, attempts, fixed, note)
  local position = tail()
  later('HSET', 'requests', id, record('r', '-', position, at, attempts, ZERO, ZERO, NEVER, '-', fixed, note))
  add('ready', position .. id .. sub(fixed, 33, 40))
  add('moved', id)
  state.ready_bytes = state.ready_bytes + size_of(rec)
end

-- Forgets a request that is nowhere any more.
local function forget(id, rec)
  later('HDEL', 'requests', id)
  drop('payload:' .. id)
  if expires_of(rec) ~= NEVER then remove('expiry', expires_of(rec) .. id) end
end

-- Takes a request out of the delayed or ready ones; whether it was there.
local function take_waiting(id, rec)
  local kind, position = sub(rec, 1, 1), position_of(rec)
  if kind == 'l' then
    call('ZREM', PREFIX .. 'due', sub(rec, 19, 34) .. position .. id)
    call('ZREM', PREFIX .. 'delayed', id)
  elseif kind == 'r' and call('ZREM', PREFIX .. 'ready', member_of(id, rec)) == 1 then
    if position ~= id then call('ZREM', PREFIX .. 'moved', id) end
    state.ready_bytes = state.ready_bytes - size_of(rec)
  else
    return false
  end
  state.held_bytes = state.held_bytes - size_of(rec)
  return true
end

-- A place in the order of settling. It keeps up with time, as positions do: who goes on behind the last place that
-- it knows misses nothing after a replica took over that lacks what came before that place.
local function next_sequence()
  local sequence = successor(state.sequence or ZERO)
  if NOW > sequence then sequence = NOW end
  state.sequence = sequence
  return sequence
end

-- Dead-letters a request that is nowhere else any more.
local function bury(id, rec, reason, note, attempts, batch)
  local sequence = next_sequence()
  add('dead', id)
  add('settled', sequence .. id)
  if expires_of(rec) ~= NEVER then remove('expiry', expires_of(rec) .. id) end
  later('HSET', 'requests', id, record('x', '-', position_of(rec), NOW, attempts, batch, sequence, NEVER, reason,
    fixed_of(rec), note))
end

-- How many requests the bounds count; those that `later` has not sent are not among them.
local function held_requests()
  return call('ZCARD', PREFIX .. 'delayed') + call('ZCARD', PREFIX .. 'ready') + call('ZCARD', PREFIX .. 'flight')
end

-- Whether `count` more requests of `bytes` would be over the bounds when so many are held.
local function over_bounds(held, count, bytes, max_requests, max_bytes)
  return count > 0 and (held + count > tonumber(max_requests) or state.held_bytes + bytes > tonumber(max_bytes))
end

-- The last step of every script: what was collected and counted is written. `refuse` answers without
-- remembering the reply, since a repeated call may be judged anew.
local function refuse(...)
  flush()
  if #dropped > 0 then call('UNLINK', unpack(dropped)) end
  local fields = {}
  for _, name in ipairs(TEXTS) do
    if state[name] then fields[#fields + 1] = name; fields[#fields + 1] = state[name] end
  end
  for _, name in ipairs(COUNTS) do
    fields[#fields + 1] = name; fields[#fields + 1] = decimal(state[name])
  end
  call('HSET', PREFIX .. 'state', unpack(fields))
  if changed then call('PUBLISH', PREFIX .. 'changed', '') end
  return { ... }
end
local function answer(reply)
  if TOKEN ~= '' then
    call('SET', PREFIX .. 'reply:' .. TOKEN, cmsgpack.pack(reply), 'EX', REPLY_SECONDS)
  end
  refuse()
  return reply
end

-- Ends the script, at a moment when all that it did is whole.
local function stop(what)
  if changed then refuse() end
  error(lost(what))
end

-- The record of a request, which must be there.
local function sound_record(id)
  local rec = call('HGET', PREFIX .. 'requests', id)
  if not is_record(rec) then stop(PREFIX .. 'requests has no record in ' .. id) end
  return rec
end

-- The values of many fields of a hash, in the order of the fields; records must be some, or not there. Those that this
-- script has looked at before it wrote anything need not be looked at again.
local function values_of(key, fields, are_sound)
  local values = {}
  for from = 1, #fields, CHUNK do
    local page = call('HMGET', PREFIX .. key, unpack(fields, from, math.min(from + CHUNK - 1, #fields)))
    for i, value in ipairs(page) do
      local field = fields[from + i - 1]
      if key == 'requests' and value and not are_sound and not is_record(value) then
        stop(PREFIX .. 'requests has no record in ' .. field)
      end
      values[from + i - 1] = value
    end
  end
  return values
end

-- Since when the oldest ready request counts; nil if none is ready. A ready time in
-- the future, left by a clock that stepped, counts from when it was first seen.
local function oldest_ready()
  local member = call('ZRANGE', PREFIX .. 'ready', 0, 0)[1]
  if not member then return nil end
  local position = sub(member, 1, 16)
  local at = sub(sound_record(sub(member, 17, 32)), 19, 34)
  if state.seen_position == position then
    if state.seen_at < at then at = state.seen_at end
  elseif at > NOW then
    state.seen_position, state.seen_at = position, NOW
  end
  return at < NOW and at or NOW
end
