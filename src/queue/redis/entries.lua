-- After `due`, in front of the scripts that look at single requests.

local batches = {}

-- The batch that a request is a member of without a `done` outcome, or nil.
local function batch_of(id)
  local member = call('ZRANGE', PREFIX .. 'flight', '[' .. id, '[' .. id .. 'g', 'BYLEX', 'LIMIT', 0, 1)[1]
  return member and sub(member, 17)
end

-- Appends what is known of a request, five values: id, state, record, and for a member of a batch
-- its formed time and the attempts counted by it. A record past its retention counts as gone.
local function describe(reply, id, rec)
  if not rec then return false end
  if not is_record(rec) then stop(PREFIX .. 'requests has no record in ' .. id) end
  local kind, batch = sub(rec, 1, 1), nil
  if kind == 'd' and sub(rec, 75, 90) <= NOW then return false end
  if kind == 'r' then batch = batch_of(id) end
  local formed_at, counted = '', '0'
  if batch then
    local held = batches[batch]
    if not held then
      held = held_batch(batch)
      check_batch(batch, held)
      batches[batch] = held
    end
    kind, formed_at, counted = 'f', held.formed_at, decimal(held.prior + held.attempt)
    rec = sub(rec, 1, 42) .. batch .. sub(rec, 59)
  end
  for _, value in ipairs({ id, kind, rec, formed_at, counted }) do reply[#reply + 1] = value end
  return true
end

local function range_of(name, from, to, count)
  return call('ZRANGE', PREFIX .. name, from, to, 'BYLEX', 'LIMIT', 0, count)
end

-- At least the first `most` ready requests from `start` on, in order of their ids. They are stored in order of
-- their positions. For most that is their id; those that got another position are in `moved` as well, in
-- order of their ids: a merge of the two.
local function ready_ids(start, most)
  local ids = range_of('moved', start, '+', most)
  local to, from, fresh = #ids == most and '[' .. ids[most] .. 'g' or '+', start, 0
  repeat
    local page = range_of('ready', from, to, CHUNK)
    for _, member in ipairs(page) do
      local id = sub(member, 17, 32)
      if fresh < most and sub(member, 1, 16) == id then
        ids[#ids + 1] = id
        fresh = fresh + 1
      end
    end
    from = #page > 0 and '(' .. page[#page]
  until #page < CHUNK or fresh == most
  table.sort(ids)
  return ids
end
