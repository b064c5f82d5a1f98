-- Adds requests: one push after the other, each all or none.
--
-- ARGV[4], [5]   the most requests and payload bytes held, decimal
-- ARGV[6...]     the pushes. Each is a head: now 16, when its keys are forgotten 16, how many requests 8, whether it has
--                a bookmark 1 ('1' or '0'), and the name under which its payloads were staged or nothing if they follow;
--                then, with a bookmark, its source and its value; then for each request its head and, unless staged, its
--                payload. The head of a request is: due (or zeros) 16, expires 16, size 8, whether it has a key 1 ('1' or
--                '0'), digests of the key and of the payload 32 each (only with a key), length of the attributes 8,
--                attributes
-- Returns        'ok', then for each push one of
--                'o', and for each request its id and '1' for a duplicate or '0', 17 characters
--                'f', requests held 16, bytes held 16: no room | 'c', which request 16, id 16: another payload has its key
--                'u': what was staged is not there
-- O(n log N) for n requests
local arg, most_requests, most_bytes = 6, ARGV[4], ARGV[5]
-- The keys that pushes before this one added in this call, which are not to be read yet.
local fresh = {}
-- Counted on from here, since of what a push adds some is sent at once and some later.
local held = held_requests()
local replies, accepted = {}, false
local payloads = { 'MSET', count = 1 }

local function put_payload(id, payload)
  local count = payloads.count + 2
  payloads[count - 1], payloads[count], payloads.count = PREFIX .. 'payload:' .. id, payload, count
  if count > 2 * CHUNK then
    call(unpack(payloads, 1, count))
    payloads = { 'MSET', count = 1 }
  end
end

local function are_staged(stage, count)
  for from = 0, count - 1, CHUNK do
    local names = {}
    for i = from, math.min(from + CHUNK, count) - 1 do names[#names + 1] = PREFIX .. 'stage:' .. stage .. ':' .. i end
    if call('EXISTS', unpack(names)) ~= #names then return false end
  end
  return true
end

local function push()
  local head = ARGV[arg]
  NOW = sub(head, 1, 16)
  local forgotten, count = sub(head, 17, 32), number(sub(head, 33, 40))
  local marked, stage = sub(head, 41, 41) == '1', sub(head, 42)
  local source, value = ARGV[arg + 1], ARGV[arg + 2]
  local first, width = arg + (marked and 3 or 1), stage == '' and 2 or 1
  arg = first + count * width
  if stage ~= '' and not are_staged(stage, count) then return 'u' end

  local known, past, ids, reply = {}, {}, {}, { 'o' }
  local last, added, bytes = state.last, 0, 0
  local function find_key(key)
    -- One of this very push is known however short the window is.
    if known[key] then return known[key] end
    local found = fresh[key] or known_key(key)
    if found and sub(found, 49, 64) <= NOW then
      past[#past + 1] = found
      return nil
    end
    return found
  end
  for i = 1, count do
    local head = ARGV[first + (i - 1) * width]
    local key = sub(head, 41, 41) == '1' and sub(head, 42, 73)
    local found = key and find_key(key)
    if found and sub(found, 65) ~= sub(head, 74, 105) then
      state.last = last
      return 'c' .. format('%016x', i - 1) .. sub(found, 33, 48)
    elseif found then
      reply[i + 1] = sub(found, 33, 48) .. '1'
    else
      local id = tail()
      ids[i], reply[i + 1] = id, id .. '0'
      added, bytes = added + 1, bytes + number(sub(head, 33, 40))
      if key then known[key] = key .. id .. forgotten .. sub(head, 74, 105) end
    end
  end
  if over_bounds(held, added, bytes, most_requests, most_bytes) then
    state.last = last
    return 'f' .. format('%016x%016x', held, state.held_bytes)
  end

  for _, value in ipairs(past) do remove('keys', value) end
  for key, value in pairs(known) do
    fresh[key] = value
    add('keys', value)
    add('keyed', forgotten .. key)
  end
  -- A record from behind its position on.
  local rest = sub(record('r', '-', '', NOW, 0, ZERO, ZERO, NEVER, '-', ''), 3)
  for i = 1, count do
    local id, at = ids[i], first + (i - 1) * width
    if id then
      local head = ARGV[at]
      local due, expires, size = sub(head, 1, 16), sub(head, 17, 32), sub(head, 33, 40)
      local fixed = expires .. NOW .. size .. sub(head, sub(head, 41, 41) == '1' and 106 or 42)
      if stage == '' then
        put_payload(id, ARGV[at + 1])
      else
        local name = PREFIX .. 'payload:' .. id
        call('RENAME', PREFIX .. 'stage:' .. stage .. ':' .. (i - 1), name)
        call('PERSIST', name)
      end
      if expires ~= NEVER then add('expiry', expires .. id) end
      if due ~= ZERO then
        later('HSET', 'requests', id, record('l', '-', id, due, 0, ZERO, ZERO, NEVER, '-', fixed))
        add('due', due .. id .. id)
        add('delayed', id)
      else
        later('HSET', 'requests', id, 'r-' .. id .. rest .. fixed)
        add('ready', id .. id .. size)
        state.ready_bytes = state.ready_bytes + number(size)
      end
    elseif stage ~= '' then
      call('UNLINK', PREFIX .. 'stage:' .. stage .. ':' .. (i - 1))
    end
  end
  if marked then call('HSET', PREFIX .. 'bookmarks', source, value) end
  state.pushed, state.held_bytes, held = state.pushed + added, state.held_bytes + bytes, held + added
  changed, accepted = changed or added > 0 or marked, true
  return table.concat(reply)
end

while arg <= #ARGV do replies[#replies + 1] = push() end
if payloads.count > 1 then call(unpack(payloads, 1, payloads.count)) end
table.insert(replies, 1, 'ok')
-- A call whose pushes were all refused may be judged anew.
if accepted then return answer(replies) end
refuse()
return replies
