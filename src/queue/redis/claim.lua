-- Takes a batch that is offered again, else forms one.
--
-- ARGV[4], [5]  the most requests and payload bytes of a new batch, decimal
-- ARGV[6]       until when it is held
-- ARGV[7]       '1' to form a new batch if none is offered, else '0'
-- ARGV[8]       the context of a new batch
-- ARGV[9], [10], [11]  form one only if this many requests are ready, or this many bytes, decimal, or the
--               oldest counts since this time or earlier (may be empty); [9] empty: whenever any are
-- Returns       'ok', batch, parent or '', fence, attempt, requests, those without an outcome, bytes,
--               formed at, '1' with a checkpoint else '0', checkpoint, context | 'none'
-- O(n log N) for n requests of a new batch; O(m) for m batches offered
local function offered()
  local first, until_at
  for _, member in ipairs(call('ZRANGE', PREFIX .. 'offers', '-', '[' .. NOW .. 'g', 'BYLEX')) do
    local batch = sub(member, 17)
    if not first or batch < first then first, until_at = batch, sub(member, 1, 16) end
  end
  return first, until_at
end

-- Dead-letters one ready request that no batch of this claim could take.
local function too_large(member, size, max_bytes)
  local id = sub(member, 17, 32)
  local rec = sound_record(id)
  take_waiting(id, rec)
  bury(id, rec, 't', 'payload of ' .. decimal(size) .. ' bytes is over max_batch_bytes ' .. max_bytes,
    attempts_of(rec), ZERO)
  changed = true
end

-- How many of the first ready requests fit, and their bytes.
local function measure(max_requests, max_bytes)
  local count, bytes = 0, 0
  while count < max_requests do
    local page = call('ZRANGE', PREFIX .. 'ready', count, math.min(count + CHUNK, max_requests) - 1)
    if #page == 0 then break end
    for _, member in ipairs(page) do
      local size = #member == 40 and number(sub(member, 33)) or stop(PREFIX .. 'ready has another member')
      if size > max_bytes then
        too_large(member, size, ARGV[5])
      elseif bytes + size > max_bytes then
        return count, bytes
      else
        count, bytes = count + 1, bytes + size
      end
    end
  end
  return count, bytes
end

local function form()
  local count, bytes = measure(tonumber(ARGV[4]), tonumber(ARGV[5]))
  if count == 0 then return nil end
  local batch = successor(state.last_batch)
  if NOW > batch then batch = NOW end
  state.last_batch = batch
  call('ZRANGESTORE', PREFIX .. 'members:' .. batch, PREFIX .. 'ready', 0, count - 1)
  call('ZREMRANGEBYRANK', PREFIX .. 'ready', 0, count - 1)
  for from = 0, count - 1, CHUNK do
    for _, member in ipairs(call('ZRANGE', PREFIX .. 'members:' .. batch, from, from + CHUNK - 1)) do
      local position, id = sub(member, 1, 16), sub(member, 17, 32)
      add('flight', id .. batch)
      if position ~= id then remove('moved', id) end
    end
  end
  state.ready_bytes = state.ready_bytes - bytes
  call('HSET', PREFIX .. 'batch:' .. batch, 'parent', '', 'attempt', 0, 'prior', 0, 'requests', count, 'open', count,
    'bytes', decimal(bytes), 'formed_at', NOW, 'context', ARGV[8])
  return batch
end

local function is_due()
  if ARGV[9] == '' then return true end
  local oldest = oldest_ready()
  return oldest and (call('ZCARD', PREFIX .. 'ready') >= tonumber(ARGV[9])
    or state.ready_bytes >= tonumber(ARGV[10]) or oldest <= ARGV[11])
end

local batch, until_at = offered()
if batch then check_batch(batch, held_batch(batch)) end
if not batch and ARGV[7] == '1' and is_due() then batch = form() end
if not batch then return answer({ 'none' }) end

changed = true
-- It grows, and its last digits are this call's alone: a replica that takes over may count up to the same claim again.
state.fence = format('%010x', number(sub(state.fence or ZERO, 1, 10)) + 1) .. sub(TOKEN, 1, 6)
local key = PREFIX .. 'batch:' .. batch
if until_at then call('ZREM', PREFIX .. 'offers', until_at .. batch) end
add('offers', ARGV[6] .. batch)
call('HSET', key, 'fence', state.fence, 'until', ARGV[6])
call('HINCRBY', key, 'attempt', 1)
local held = call('HMGET', key, 'parent', 'attempt', 'requests', 'open', 'bytes', 'formed_at', 'checkpoint', 'context')
return answer({
  'ok', batch, held[1], state.fence, held[2], held[3], held[4], held[5], held[6],
  held[7] and '1' or '0', held[7] or '', held[8],
})
