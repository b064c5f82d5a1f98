-- Adds requests, all or none.
--
-- ARGV[4], [5], [6]  whether there is a bookmark ('1' or '0'), its source, its value
-- ARGV[7], [8]       the most requests and payload bytes held, decimal
-- ARGV[9]            when the keys of this push are forgotten
-- ARGV[10]           the name under which the payloads were staged, or empty if they follow
-- ARGV[11...]        for each request its head and, unless staged, its payload. A head is: due (or
--                    zeros) 16, expires 16, size 8, length of its key 4 (or 'ffff'), key, SHA-256 of
--                    the payload 64 (only with a key), attributes
-- Returns            'ok', then for each request its id and '1' for a duplicate or '0', 17 characters
--                    | 'full', requests held, bytes held | 'conflict', key, id | 'unstaged'
-- O(n log N) for n requests
local stage, width = ARGV[10], ARGV[10] == '' and 2 or 1
local count = (#ARGV - 10) / width
local known, last, bytes, added = {}, state.last, 0, 0
local ids, replies = {}, {}

local function unpack_head(head)
  local length = sub(head, 41, 44)
  if length == 'ffff' then return nil, nil, sub(head, 45) end
  local stop = 44 + number(length)
  return sub(head, 45, stop), sub(head, stop + 1, stop + 64), sub(head, stop + 65)
end

local function find_key(key)
  if known[key] then return known[key] end
  local value = call('HGET', PREFIX .. 'keys', key)
  return value and sub(value, 17, 32) > NOW and value
end

if stage ~= '' then
  for from = 0, count - 1, CHUNK do
    local names = {}
    for i = from, math.min(from + CHUNK, count) - 1 do names[#names + 1] = PREFIX .. 'stage:' .. stage .. ':' .. i end
    if call('EXISTS', unpack(names)) ~= #names then return refuse('unstaged') end
  end
end

for i = 1, count do
  local head = ARGV[10 + (i - 1) * width + 1]
  local key, digest = unpack_head(head)
  local found = key and find_key(key)
  if found and sub(found, 33) ~= digest then
    state.last = last
    return refuse('conflict', key, sub(found, 1, 16))
  elseif found then
    replies[i] = sub(found, 1, 16) .. '1'
  else
    local id = tail()
    ids[i], replies[i] = id, id .. '0'
    added, bytes = added + 1, bytes + number(sub(head, 33, 40))
    if key then known[key] = id .. ARGV[9] .. digest end
  end
end
local over, held = over_bounds(added, bytes, ARGV[7], ARGV[8])
if over then
  state.last = last
  return refuse('full', decimal(held), decimal(state.held_bytes))
end

for key, value in pairs(known) do
  later('HSET', 'keys', key, value)
  add('keyed', ARGV[9] .. key)
end
for i = 1, count do
  local id, staged = ids[i], PREFIX .. 'stage:' .. stage .. ':' .. (i - 1)
  if id then
    local head = ARGV[10 + (i - 1) * width + 1]
    local _, _, attributes = unpack_head(head)
    local due, expires, size = sub(head, 1, 16), sub(head, 17, 32), sub(head, 33, 40)
    local fixed = expires .. NOW .. size .. hex8(#attributes) .. attributes
    if stage == '' then
      call('SET', PREFIX .. 'payload:' .. id, ARGV[10 + i * width])
    else
      call('RENAME', staged, PREFIX .. 'payload:' .. id)
      call('PERSIST', PREFIX .. 'payload:' .. id)
    end
    if expires ~= NEVER then add('expiry', expires .. id) end
    if due ~= ZERO then
      later('HSET', 'requests', id, record('l', '-', id, due, 0, ZERO, ZERO, NEVER, '-', fixed))
      add('due', due .. id .. id)
      add('delayed', id)
    else
      later('HSET', 'requests', id, record('r', '-', id, NOW, 0, ZERO, ZERO, NEVER, '-', fixed))
      add('ready', id .. id .. size)
      state.ready_bytes = state.ready_bytes + number(size)
    end
  elseif stage ~= '' then
    call('UNLINK', staged)
  end
end
if ARGV[4] == '1' then call('HSET', PREFIX .. 'bookmarks', ARGV[5], ARGV[6]) end
state.pushed, state.held_bytes = state.pushed + added, state.held_bytes + bytes
changed = changed or added > 0
return answer({ 'ok', table.concat(replies) })
